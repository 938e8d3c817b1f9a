"""A stand-in for Text Generation Inference (TGI) 3.3 on CPUs, for tests and demos.

It is not TGI: one process and a plain transformers model take the place of router, launcher and CUDA kernels. What it
keeps is TGI's HTTP contract with its quirks (closed port while loading, unknown adapters answered by the base model,
errors inside a 200 stream, ...), and its answers are real answers of the checkpoint it was given.

The contract was read from the sources of ``huggingface/text-generation-inference`` v3.3.7 (Apache-2.0), mainly
``router/src/{server,validation,lib,chat}.rs``, ``router/src/infer/mod.rs`` and ``launcher/src/main.rs``.
"""

TGI_VERSION = "3.3.7"
"""The release whose contract is spoken; what ``/info`` reports as ``version``."""

STAND_IN_LABEL = "tgi-cpu-stand-in"
"""``docker_label`` of ``/info`` and the end of ``system_fingerprint``: how a client can tell this from TGI."""
