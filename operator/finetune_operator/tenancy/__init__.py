"""Which namespaces may use what: the admin's rules, compared with what a custom resource asks for. Pure.

``rules`` are the admin's, ``claim`` is one thing that a resource asks for, ``places`` compares URIs and hosts, and
``verdict`` brings them together. The chart's ValidatingAdmissionPolicy says the same in CEL
(charts/finetune-operator/templates/_tenancy.tpl); tests/controlplane/test_tenancy_policy.py holds them together.
"""
