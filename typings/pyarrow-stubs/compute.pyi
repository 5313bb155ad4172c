"""pyarrow.compute makes its functions when it is imported, so that pyright cannot see them."""

from typing import Any

def __getattr__(name: str) -> Any: ...
