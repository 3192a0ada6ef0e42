"""The REST service as a Ray Serve application: how it is built, and what it may be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rerank_plugins.config import RerankConfig, service_api_keys
from rerank_plugins.distributed.rays import import_ray
from rerank_plugins.errors import ConfigError
from rerank_plugins.service.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Mapping


class ServeArgs(BaseModel):
    """What a Ray Serve application is built of; the names are those of a Serve config's ``args``.

    ``models`` is names to models, ``model`` the one where there is one; ``settings`` holds those of
    `RerankConfig` for all of them, ``limits`` those of `ServiceSettings`. A replica has every
    model and reserves ``num_cpus`` and ``num_gpus`` (0.5 puts two on a GPU). There are from
    ``min_replicas`` to ``max_replicas``, so many that each answers ``target_ongoing_requests`` at a
    time, and ``max_ongoing_requests`` at most: batches are made of them. ``max_queued_requests``
    wait beyond that; the next is told to come back. ``doors`` take requests in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    models: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    limits: dict[str, Any] = Field(default_factory=dict)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    num_gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    target_ongoing_requests: int = Field(default=16, ge=1)
    max_ongoing_requests: int = Field(default=64, ge=1)
    max_queued_requests: int = Field(default=512, ge=1)
    doors: int = Field(default=2, ge=1)
    health_check_period_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    graceful_shutdown_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)


def build_app(args: Mapping[str, Any]) -> Any:  # noqa: ANN401  Ray's Application
    """Build the application from the ``args`` of `ServeArgs`, for ``serve run`` and Serve configs.

    Keys of clients are read from ``RERANK_PLUGINS_SERVICE_API_KEYS``, here and in every replica:
    they must not stand in a config.

    Raises:
        ConfigError: an argument is unknown or out of range.
        MissingExtraError: Ray Serve or FastAPI is not installed.
    """
    try:
        found = ServeArgs.model_validate(dict(args))
    except ValidationError as exc:
        raise ConfigError(_explain(exc)) from None
    if found.max_replicas < found.min_replicas:
        raise ConfigError(
            f"max_replicas: expected at least min_replicas ({found.min_replicas}), "
            f"got {found.max_replicas}"
        )
    models, settings = _models(found), _limits(found)
    serve = import_ray("serve").serve
    from rerank_plugins.distributed.replicas import Door, ModelReplica

    replicas = serve.deployment(ModelReplica, name="models", **_deployment(found))
    doors = serve.deployment(
        Door,
        name="door",
        num_replicas=found.doors,
        ray_actor_options={"num_cpus": 0},
        # It only waits, and what waits too long is refused by the handle behind it.
        max_ongoing_requests=_waiting(found),
        graceful_shutdown_timeout_s=found.graceful_shutdown_s,
    )
    bound = replicas.bind(models, settings, keys=bool(service_api_keys()))
    return doors.bind(bound, settings)


def _deployment(args: ServeArgs) -> dict[str, Any]:
    """Return what Ray Serve is told of the replicas."""
    if args.max_replicas > args.min_replicas:
        number: dict[str, Any] = {
            "autoscaling_config": {
                "min_replicas": args.min_replicas,
                "max_replicas": args.max_replicas,
                "target_ongoing_requests": args.target_ongoing_requests,
            }
        }
    else:
        number = {"num_replicas": args.min_replicas}
    return number | {
        "ray_actor_options": {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        "max_ongoing_requests": args.max_ongoing_requests,
        "max_queued_requests": args.max_queued_requests,
        "health_check_period_s": args.health_check_period_s,
        "graceful_shutdown_timeout_s": args.graceful_shutdown_s,
    }


def _waiting(args: ServeArgs) -> int:
    """Return how many requests may be under way behind one door, and some to be refused."""
    return args.max_replicas * args.max_ongoing_requests + 2 * args.max_queued_requests


def _models(args: ServeArgs) -> dict[str, RerankConfig] | RerankConfig:
    if args.models and args.model is not None:
        raise ConfigError("model, models: name one model or several by their names, not both")
    for owned in {"model", "observers"} & args.settings.keys():
        raise ConfigError(f"settings: {owned!r} is not for here")
    if args.models:
        return {
            name: RerankConfig(**{**args.settings, "model": model})
            for name, model in args.models.items()
        }
    return RerankConfig(**args.settings, **({} if args.model is None else {"model": args.model}))


def _limits(args: ServeArgs) -> ServiceSettings:
    if "api_keys" in args.limits:
        raise ConfigError("limits: keys are read from RERANK_PLUGINS_SERVICE_API_KEYS alone")
    if unknown := args.limits.keys() - set(ServiceSettings.__dataclass_fields__):
        raise ConfigError(f"limits: unknown: {', '.join(sorted(unknown))}")
    return ServiceSettings(**args.limits)


def _explain(error: ValidationError) -> str:
    """One line per argument that is wrong; an unknown one with those that are known."""
    known = ", ".join(ServeArgs.model_fields)
    lines = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        unknown = problem["type"] == "extra_forbidden"
        lines.append(f"{name}: {f'unknown; known are {known}' if unknown else problem['msg']}")
    return "\n".join(lines)
