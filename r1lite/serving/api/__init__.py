"""The engine over HTTP: OpenAI's API, metrics and the chat page.

Needs the packages of the extra `serve`; nothing else in R1-lite does.
"""

from r1lite.errors import R1Error

try:
    import fastapi  # noqa: F401
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise R1Error(
        f"serve: the package {error.name} is not installed; "
        "run `pip install 'r1lite[serve]'`"
    ) from error
