"""AdapterDeployment: observe, plan, status."""
