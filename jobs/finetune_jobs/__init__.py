"""What runs in the stages' containers.

Python imports this package before the module that ``python -m`` names, and so before the libraries, some of which warn
while they are imported: the log is set up here.
"""

from finetune_jobs.runtime.logs import before_imports

before_imports()
