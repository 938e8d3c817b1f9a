"""The two kinds of custom resource, as the API server names them."""

from typing import Final

from finetune_api import meta
from finetune_operator.framework.objects import Resource

FINETUNEJOBS: Final = Resource(meta.API_VERSION, meta.FINETUNEJOB, meta.FINETUNEJOBS)
ADAPTERDEPLOYMENTS: Final = Resource(meta.API_VERSION, meta.ADAPTERDEPLOYMENT, meta.ADAPTERDEPLOYMENTS)
CUSTOM_RESOURCES: Final = (FINETUNEJOBS, ADAPTERDEPLOYMENTS)
