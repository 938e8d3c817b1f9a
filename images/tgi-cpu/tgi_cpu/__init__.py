"""A stand-in for Text Generation Inference (TGI) 3.3 on CPUs, for tests and demos.

It is not TGI: one process with a plain transformers model replaces router, launcher and CUDA kernels. It keeps TGI's
HTTP contract with its quirks (closed port while loading, unknown adapters answered by the base model, errors inside a
200 stream, ...), and its answers are real answers of the given checkpoint.

The contract was read from the sources of ``huggingface/text-generation-inference`` v3.3.7 (Apache-2.0), mainly
``router/src/{server,validation,lib,chat}.rs``, ``router/src/infer/mod.rs`` and ``launcher/src/main.rs``.
"""

TGI_VERSION = "3.3.7"
"""The TGI release whose contract is implemented; ``/info`` reports it as ``version``."""

STAND_IN_LABEL = "tgi-cpu-stand-in"
"""``docker_label`` of ``/info`` and the end of ``system_fingerprint``: clients can tell it from TGI by this."""
