"""What `owl3 serve` puts together. It needs the extra `serve`."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import socket
import sys

import owl3_jax
from owl3_jax.cli.model_flags import load_model
from owl3_jax.cli.serve_flags import Flags, listed
from owl3_jax.formats.bundled import find_checkpoint
from owl3_jax.inference.sampling import Sampling
from owl3_jax.serving.api_settings import ApiSettings
from owl3_jax.serving.app import make_app
from owl3_jax.serving.auth import ApiKeys, read_keys
from owl3_jax.serving.bodies import BodyLimits
from owl3_jax.serving.decoding import DecodeLimits, Decoders
from owl3_jax.serving.engine import start_engine
from owl3_jax.serving.fetch import MediaFetcher
from owl3_jax.serving.gate import Gate
from owl3_jax.serving.generation import ServingEngine
from owl3_jax.serving.hosts import LOOPBACK
from owl3_jax.serving.logs import log, use_json_logs
from owl3_jax.serving.media_policy import MediaPolicy
from owl3_jax.serving.server import ServerLimits, listen, run_server
from owl3_jax.serving.token_bytes import TokenBytes

_KEY_VARIABLE = "OWL3_API_KEY"
_MIB = 2**20
_BODIES = 1024  # MiB of all requests' bodies together, at least
_MOST_ANSWERS = 16  # to one prompt
_FILES = 65536  # open at the same time, connections among them


def serve(flags: Flags, sampling: Sampling) -> None:
    """Serves until a signal comes. What can be wrong with the flags is found before the model is loaded.

    Raises OSError, ConfigError, and what loading the model raises.
    """
    use_json_logs()
    keys = keys_of(flags)
    settings, policy = settings_of(flags, sampling), policy_of(flags)
    limits = limits_of(flags)
    taken = listen(flags.host, flags.port)
    with contextlib.closing(taken):
        _warn_if_open(flags, keys)
        _raise_file_limit()
        owl = load_model(flags.model)
        engine = start_engine(owl, flags.engine)
        try:
            asyncio.run(_serve(flags, settings, keys, policy, limits, taken, owl, engine))
            if engine.has_failed:
                sys.exit("error: the engine has failed, the log says why")
        finally:
            engine.close(0.0)


async def _serve(
    flags: Flags,
    settings: ApiSettings,
    keys: ApiKeys,
    policy: MediaPolicy,
    limits: DecodeLimits,
    taken: socket.socket,
    owl: owl3_jax.Owl3Checkpoint,
    engine: ServingEngine,
) -> None:
    gate = Gate(settings.max_preparing)
    decoders = Decoders(
        find_checkpoint(flags.model.checkpoint),
        flags.decode_workers,
        limits,
        crop=owl.processor.crop,
        max_frames=owl.processor.video_sampling.max_frames,
        frame_rule=owl.processor.video_sampling.rule,
    )
    async with MediaFetcher(policy) as fetcher, decoders:
        spelling = TokenBytes(owl.processor.tokenizer)
        positions = flags.engine.most_tokens(owl.config.max_position_embeddings)
        longest = None if spelling.longest is None else positions * spelling.longest
        settings = dataclasses.replace(settings, positions=positions, max_text_bytes=longest)
        counts = {"decoders": lambda: decoders.counts()._asdict()}
        app = make_app(engine, fetcher, decoders, spelling, settings, keys, gate, counts)
        await run_server(app, taken, gate, engine, ServerLimits(drain_seconds=flags.drain_seconds))


def keys_of(flags: Flags) -> ApiKeys:
    """From the file and the environment. Raises ConfigError, and OSError."""
    keys = [] if flags.api_key_file is None else read_keys(flags.api_key_file)
    return ApiKeys(keys + ([os.environ[_KEY_VARIABLE]] if os.environ.get(_KEY_VARIABLE) else []))


def settings_of(flags: Flags, sampling: Sampling) -> ApiSettings:
    """Of the HTTP side. A server that only this machine can reach, and without keys, goes by this machine's names alone."""
    hosts = tuple(listed(flags.allowed_hosts))
    if not hosts and flags.is_local and not keys_of(flags):
        hosts = (*LOOPBACK, flags.host)
    return ApiSettings(
        models=tuple(listed(flags.served_model_name)) or (find_checkpoint(flags.model.checkpoint).resolve().name,),
        sampling=sampling,
        max_answers=min(_MOST_ANSWERS, _most_answers(flags)),
        max_media=flags.engine.max_images,
        max_preparing=_most_answers(flags),
        bodies=BodyLimits(bytes_each=flags.max_body_mib * _MIB, bytes_all=max(_BODIES, 4 * flags.max_body_mib) * _MIB),
        allowed_hosts=hosts,
    )


def _most_answers(flags: Flags) -> int:
    """That are decoded or wait."""
    return flags.engine.max_running + flags.engine.max_queued


def policy_of(flags: Flags) -> MediaPolicy:
    """What may be fetched. Raises ValueError for domains and folders that are none."""
    return MediaPolicy(tuple(listed(flags.allowed_media_domains)), flags.allowed_local_media_path)


def limits_of(flags: Flags) -> DecodeLimits:
    """What a request may cost where it is decoded."""
    return DecodeLimits(
        max_images=flags.engine.max_images,
        max_pixels=flags.max_pixels,
        max_frames=flags.model.max_frames or flags.engine.max_images,
    )


def _warn_if_open(flags: Flags, keys: ApiKeys) -> None:
    if not flags.is_local and not keys:
        log(
            f"ANYBODY who can reach {flags.host}:{flags.port} can use this server: there are no API keys. Give --api-key-file, "
            "or leave out --host",
            logging.WARNING,
        )


def _raise_file_limit() -> None:
    """Each connection is an open file, and the usual limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
