"""The stores of one input: each storage has a client of its own, with its own keys, certificates and region."""

from finetune_api.storage import InputStorage
from finetune_jobs.store.s3 import Store


class Places:
    """Opens places in stores. Those of one storage share a connection; those of two share nothing."""

    def __init__(self, default: InputStorage) -> None:
        """``default`` says how a place is reached that has no storage of its own."""
        self._default = default
        self._opened: dict[InputStorage, Store] = {}

    def open(self, uri: str, storage: InputStorage | None = None) -> Store:
        """A place, reached as ``storage`` says. Raises StageError as ``Store.connect``."""
        wanted = storage or self._default
        if wanted not in self._opened:
            self._opened[wanted] = Store.connect(wanted, uri)
        return self._opened[wanted].at(uri)
