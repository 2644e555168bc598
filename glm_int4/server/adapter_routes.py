"""Adapters that come and go while a server runs: vLLM's routes, for the folders of one folder.

Clients give names alone: no path leads out of that folder, and nothing is downloaded.
"""

import asyncio
import os
from collections.abc import Container
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from glm_int4.adapters.adapter_source import check_name
from glm_int4.errors import InputError, UserError
from glm_int4.server.api_errors import ApiError
from glm_int4.server.schemas import LoadAdapterRequest, UnloadAdapterRequest
from glm_int4.server.worker import Worker


def add_adapter_routes(app: FastAPI, worker: Worker, folder: Path, taken: Container[str]) -> None:
    """Let clients load the adapters that lie in a folder, and unload any.

    Args:
        taken: names that are the model's.
    """
    adapters, one_at_a_time = worker.engine.adapters, asyncio.Lock()

    @app.post("/v1/load_lora_adapter", summary="Serve an adapter", response_class=PlainTextResponse)
    async def load(request: LoadAdapterRequest) -> Response:
        name = request.lora_name
        try:
            if name in taken:
                raise InputError(f"expected another name than {name}, which the model has already")
            adapters.check_free(name)
            source = find_folder(folder, request.lora_path or name)
            async with one_at_a_time:  # which bounds the memory that reading takes
                parts = await asyncio.to_thread(adapters.prepare, name, source)
                await worker.change(lambda: adapters.add(name, parts))
        except UserError as error:
            # Where the folder lies is nobody's business.
            raise ApiError(400, str(error).replace(f"{folder.resolve()}{os.sep}", "")) from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", summary="End serving an adapter", response_class=PlainTextResponse)
    async def unload(request: UnloadAdapterRequest) -> Response:
        name = request.lora_name
        try:
            await worker.change(lambda: worker.batcher.retire(adapters.take_away(name)))
        except UserError as error:
            raise ApiError(404, str(error), code="model_not_found", param="lora_name") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def find_folder(folder: Path, name: str) -> Path:
    """An adapter's folder inside of another one, by its name.

    Raises:
        ApiError: 404, there is none.
        InputError: this is no name, but a path or the like; or it leads out of the folder.
    """
    check_name(name)
    found = (folder / name).resolve()
    if not found.is_dir():
        raise ApiError(404, f"expected an adapter in the server's folder of adapters, got {name}, which is not there")
    if not found.is_relative_to(folder.resolve()):
        raise InputError(f"expected an adapter in the server's folder of adapters, got {name}, a link out of it")
    return found
