"""`limbeck serve`: the arena's public API and dashboard."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    arena_dir: Annotated[Path, typer.Option(help="Folder of the local arena.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve the arena's dashboard and read-only API until interrupted."""
    import socket

    import uvicorn

    from limbeck.errors import UserError
    from limbeck.progress import say
    from limbeck.serve.app import create_app
    from limbeck.serve.arena_reader import FolderArena

    arena = FolderArena.open(arena_dir)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            raise UserError(
                f"{host}:{port}: cannot be listened on ({error.strerror}). Choose another --port."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        say(f"Dashboard: http://{shown}:{port}/   API: http://{shown}:{port}/api/health   (Ctrl-C stops it)")
        config = uvicorn.Config(create_app(arena), log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        arena.close()
