"""``panbench fit | validate | test | predict``: Lightning's command line with the policies of this suite.

- One configuration, one folder: the run directory is named by the dataset, scene, method, seed and the hash of every
  setting that decides the result. The same command therefore finds its own run and continues it.
- Nothing is read out of a checkpoint but the state: Lightning's parser would take hyper-parameters from ``--ckpt_path``
  and override the command line with them. It does so for its own subcommands only, which are not used here (the verb
  is the dispatcher's), and there is no ``--ckpt_path``.
- A wrong setting is one line (:mod:`panbench.cli.config_errors`).
"""

from __future__ import annotations

import importlib
import json
import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from panbench.cli.config_errors import explain
from panbench.cli.console import quieten_lightning, stdout
from panbench.errors import Interrupted, UserError
from panbench.ops import backend
from panbench.resources import find_config
from panbench.training.checkpoint import AtomicCheckpointIO, SaveLast
from panbench.training.files import write_text
from panbench.training.finish import Finish, show_result
from panbench.training.finite import WatchFinite
from panbench.training.loggers import WandbOptions, log_finished, tensorboard_logger, under_agent, wandb_logger
from panbench.training.memory import keep_freed_memory
from panbench.training.metrics_csv import MetricsCsv
from panbench.training.progress import TrainingProgress
from panbench.training.run_dir import RunDirectory, RunManifest, differences, environment, tracked_hash

log = logging.getLogger(__name__)

# Of the trainer's settings only these change what is learnt; the rest is hardware, cadence and display.
_TRACKED_TRAINER = (
    "max_steps",
    "max_epochs",
    "precision",
    "limit_train_batches",
    "overfit_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
# Where the data lies and how much of it is cached decides nothing; its hashes are tracked instead.
_UNTRACKED_DATA = ("root", "split_file", "label_space", "point_cloud", "cache_mb")
# Which scene, which masks, in which order: all other settings are those of the method.
_SCENE_DATA = ("scene", "room_size", "room_seed", "masks", "order_seed")


@dataclass
class RunOptions:
    """Where a run goes and what happens at its end.

    Attributes:
        root: folder of all runs.
        method: name of the method in folders and tables; null makes it from the model's and the head's class.
        protocols: protocols to score the test frames under, the main one first; null: the dataset's published one and
            panoptic-strict@1.
        receipt: JSON file that is told the run's folder, for the program that started it; null: none.
        finish: score, draw and show the test frames after training.
        wandb: Weights & Biases.
        tensorboard: write ``tensorboard/`` in the run directory too.
    """

    root: str = "runs"
    method: str | None = None
    protocols: list[str] | None = None
    receipt: str | None = None
    finish: bool = True
    wandb: WandbOptions = field(default_factory=WandbOptions)
    tensorboard: bool = False


class Parser(LightningArgumentParser):
    """Lightning's parser, whose errors are one line."""

    argv: Sequence[str] = ()
    folder: Path = Path()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises:
        UserError: always, with the key, the cause, the nearest valid name and the file.
        """
        if not self.exit_on_error:
            # A parser within the parser, trying one of several types: the outer one reports.
            super().error(message, ex)
        groups = [action.dest for action in self._actions if action.dest not in ("help", "config", "print_config")]
        raise UserError(explain(str(message), self.argv, self.folder, groups, L.Trainer)) from ex


class PanbenchCLI(LightningCLI):
    """Parses a command, instantiates scene, model and trainer, and knows the run directory.

    Args:
        argv: options of the verb.
        folder: the run directory to work in; None computes it from the configuration.

    Raises:
        UserError: for a wrong setting.
    """

    def __init__(self, argv: Sequence[str], folder: Path | None = None) -> None:
        self._argv = list(argv)
        self._folder = folder
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            parser_kwargs={"allow_abbrev": False, "prog": "panbench fit"},
            trainer_defaults={"callbacks": [WatchFinite()]},
            run=False,
            args=self._argv,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=RunOptions, default=RunOptions(), help="where the run goes")
        parser.add_argument("--fresh", action="store_true", help="start over, whatever is in the run directory")
        parser.add_lightning_class_args(SaveLast, "checkpoint")
        parser.add_lightning_class_args(TrainingProgress, "progress")

    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        assert isinstance(parser, Parser)
        parser.argv, parser.folder = self._argv, Path.cwd()
        self.config = parser.parse_args(self._argv)
        if isinstance(self.config.seed_everything, bool):
            raise UserError("seed_everything: give a number; a run's folder and its result are named by it")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The trainer, once the scene is known and with it the run directory."""
        settings: Any = self.config_init
        options: RunOptions = settings.run
        datamodule: L.LightningDataModule = self.datamodule
        datamodule.prepare_data()
        datamodule.setup("fit")
        self.options = options
        self.manifest = self._describe(options)
        if self._folder is None:
            m = self.manifest
            self._folder = Path(options.root) / m.dataset / m.scene / m.method / f"s{m.seed}-{m.hash[:8]}"
        self.run_dir = RunDirectory(self._folder)
        config = settings.trainer
        if config.enable_progress_bar is False:
            settings.pop("progress")
            self.parser.callback_keys.remove("progress")
        plugins = config.plugins or []
        return super().instantiate_trainer(
            default_root_dir=str(self.run_dir.path),
            logger=self._loggers(options, config.logger),
            plugins=[*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()],
            **kwargs,
        )

    @property
    def save_last(self) -> SaveLast:
        """The checkpoint callback of the trainer."""
        return next(c for c in self.trainer.callbacks if isinstance(c, SaveLast))  # pyright: ignore[reportAttributeAccessIssue]

    def resolved(self) -> str:
        """The complete configuration as YAML."""
        return self.parser.dump(self.config, skip_unset=False)

    def _describe(self, options: RunOptions) -> RunManifest:
        config: dict[str, Any] = yaml.safe_load(self.resolved())
        scene = getattr(self.datamodule, "scene", None)
        data: dict[str, Any] = dict(config["data"].get("init_args") or {})
        tracked: dict[str, Any] = {
            "model": config["model"],
            "data": {"class_path": config["data"]["class_path"]}
            | {key: value for key, value in data.items() if key not in _UNTRACKED_DATA},
            "trainer": {key: config["trainer"].get(key) for key in _TRACKED_TRAINER},
            "seed": config["seed_everything"],
        }
        method_data = {key: value for key, value in tracked["data"].items() if key not in ("class_path", *_SCENE_DATA)}
        settings = {"model": tracked["model"], "data": method_data, "trainer": tracked["trainer"]}
        facts: dict[str, Any] = {"dataset": "none", "scene": "none"}
        if scene is not None:
            names = [[scene.source.name(i) for i in indices] for indices in (scene.train, scene.test)]
            tracked["scene"] = {
                "data_hash": scene.data_hash,
                "mask_hash": scene.mask_hash,
                "label_hash": scene.labels.hash,
                "frames_hash": tracked_hash({"train": names[0], "test": names[1]}),
            }
            facts = {"dataset": scene.dataset, "scene": scene.name, "synthetic": scene.synthetic}
            how = {key: data[key] for key in ("stride", "views", "select") if key in data}
            facts["frames"] = {**how, "train": names[0], "test": names[1]}
        return RunManifest(
            **facts,
            **environment(),
            method=options.method or _method_name(config["model"]),
            seed=config["seed_everything"],
            tracked=tracked,
            hash=tracked_hash(tracked),
            settings_hash=tracked_hash(settings),
            data_settings_hash=tracked_hash(method_data),
        )

    def _loggers(self, options: RunOptions, configured: object) -> list[Logger]:
        out: list[Logger] = [MetricsCsv(self.run_dir.path)]
        if isinstance(configured, Logger):
            out.append(configured)
        elif isinstance(configured, list):
            out.extend(logger for logger in configured if isinstance(logger, Logger))
        if options.tensorboard:
            out.append(tensorboard_logger(self.run_dir))
        wandb = wandb_logger(options.wandb, self.manifest, self.run_dir, lambda: yaml.safe_load(self.resolved()))
        if wandb is not None:
            out.append(wandb)
        return out


def main(argv: Sequence[str]) -> int:
    """Run ``argv[0]``: fit, validate, test or predict.

    Each takes ``--config FILE`` and overrides, or the folder of an earlier run: ``panbench test runs/…/s0-1a2b3c4d``.

    Raises:
        UserError: for anything the user can mend.
    """
    quieten_lightning()
    # During training SaveLast answers Ctrl-C; this is for the time before and after.
    signal.signal(signal.SIGINT, _stop)
    verb, options = argv[0], ["--help" if option == "--help-all" else option for option in argv[1:]]
    folder = None
    if options and not options[0].startswith("-"):
        folder = _run_folder(options.pop(0))
        options = ["--config", str(RunDirectory(folder).config), *options]
    cli = open_cli(options, folder)
    if verb == "fit":
        return _fit(cli)
    return _after_training(cli, verb)


def open_cli(options: Sequence[str], folder: Path | None = None) -> PanbenchCLI:
    """What these options stand for: configuration, scene, run directory. Writes and trains nothing.

    Raises:
        UserError: for a wrong setting, or a scene that cannot be read.
    """
    _make_short_names_known()
    return PanbenchCLI(_with_found_configs(options), folder)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted("the same command continues")


def _fit(cli: PanbenchCLI) -> int:
    run = cli.run_dir
    run.create()
    if cli.options.receipt is not None:
        write_text(Path(cli.options.receipt), json.dumps({"run": str(run.path.resolve())}) + "\n")
    with run.locked():
        if cli.config.fresh:
            run.clear()
        manifest = _resumable(cli)
        finish = _finish_of(cli, manifest)
        if manifest.status == "finished" and run.result.is_file():
            log.info("%s is finished; --fresh starts it over", run.path)
            if under_agent():  # whose trial has its scores all the same
                log_finished(cli.trainer.loggers, run, manifest)
            show_result(run, stdout())
            return 0
        write_text(run.config, cli.resolved())
        run.write_manifest(manifest)
        if manifest.status == "training":
            _train(cli, manifest)
            manifest.status = "trained"
            run.write_manifest(manifest)
            weights = None
        else:
            log.info("%s is trained", run.path)
            weights = run.checkpoint
        if cli.options.finish:
            _score(cli, finish, manifest, weights)
    return 0


def _resumable(cli: PanbenchCLI) -> RunManifest:
    """The manifest to go on with: that of the run in this folder, or a new one."""
    run, manifest = cli.run_dir, cli.manifest
    if not run.exists():
        earlier = run.earlier(manifest.seed)
        if earlier is not None:
            changes = differences(earlier.manifest().tracked, manifest.tracked)
            log.info("a new run; %s differs in %s", earlier.path.name, "; ".join(changes[:8]) or "nothing tracked")
        log.info("run directory: %s", run.path)
        return manifest
    old = run.manifest()
    if old.hash != manifest.hash:
        changes = "; ".join(differences(old.tracked, manifest.tracked)[:8])
        raise UserError(f"{run.path} was run with other settings ({changes}); use --config instead of the folder")
    old.commands += manifest.commands
    old.versions, old.machine = manifest.versions, manifest.machine
    return old


def _train(cli: PanbenchCLI, manifest: RunManifest) -> None:
    run = cli.run_dir
    part = run.checkpoint.with_name(run.checkpoint.name + ".part")
    if part.exists():
        log.warning("writing a checkpoint was cut off; going on from the one before it")
        part.unlink()
    start = run.checkpoint if run.checkpoint.is_file() else None
    if start is not None:
        log.info("resuming from %s", start)
    path = None if start is None else str(start)
    keep_freed_memory()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    manifest.steps = cli.trainer.global_step
    manifest.cost["fit_seconds"] = cli.save_last.elapsed
    if backend.reason():
        manifest.backend, manifest.backend_reason = backend.resolve(rasterizing=True), backend.reason()


def _finish_of(cli: PanbenchCLI, manifest: RunManifest) -> Finish:
    return Finish(cli.run_dir, manifest, cli.options.protocols, config=yaml.safe_load(cli.resolved()))


def _score(cli: PanbenchCLI, finish: Finish, manifest: RunManifest, weights: Path | None) -> None:
    finish.predict(cli.trainer, cli.model, cli.datamodule, weights)
    finish.score(cli.datamodule.scene)
    finish.log(cli.trainer.loggers)
    finish.draw(cli.datamodule.scene)
    finish.diagnose()
    manifest.status = "finished"
    cli.run_dir.write_manifest(manifest)
    log_finished(cli.trainer.loggers, cli.run_dir, manifest)
    show_result(cli.run_dir, stdout())


def _after_training(cli: PanbenchCLI, verb: str) -> int:
    run = cli.run_dir
    keep_freed_memory()
    if not run.checkpoint.is_file():
        raise UserError(f"{run.path} has no checkpoint: run panbench fit with the same options first")
    with run.locked():
        manifest = run.manifest()
        if verb == "validate":
            cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=str(run.checkpoint), weights_only=True)
        elif verb == "test":
            _score(cli, _finish_of(cli, manifest), manifest, run.checkpoint)
        else:
            _finish_of(cli, manifest).predict(cli.trainer, cli.model, cli.datamodule, run.checkpoint)
            stdout().print(str(run.predictions), soft_wrap=True)
    return 0


def _run_folder(path: str) -> Path:
    folder = Path(path)
    if not RunDirectory(folder).config.is_file():
        raise UserError(f"{path} is not a run directory: it has no config.yaml; to name a config, use --config")
    return folder


def _with_found_configs(options: Sequence[str]) -> list[str]:
    """The options with the shipped config in place of a name that is no file here."""
    out: list[str] = []
    for i, token in enumerate(options):
        option, equals, value = token.partition("=")
        if _names_config(option, value) and equals:
            token = f"{option}={find_config(value)}"
        elif i > 0 and _names_config(options[i - 1], token):
            token = str(find_config(token))
        out.append(token)
    return out


def _names_config(option: str, value: str) -> bool:
    """True if the value is the file of a recipe or of a part of one."""
    if option in ("--model", "--model.head", "--data", "--trainer"):
        return value.endswith(".yaml")  # or the name of a class
    return option in ("-c", "--config")


def _make_short_names_known() -> None:
    """Import what panbench ships, so that ``--model ThreeDGS`` works: bare names are looked up among loaded classes."""
    for module in ("panbench.heads", "panbench.models", "panbench.data.scannet"):
        importlib.import_module(module)


def _method_name(model: Mapping[str, Any]) -> str:
    """``ligs-query`` of class paths ``….LiGS`` and ``….QueryHead``."""
    name = str(model["class_path"]).rpartition(".")[2].lower()
    head = (model.get("init_args") or {}).get("head")
    if isinstance(head, Mapping):
        name += "-" + str(head["class_path"]).rpartition(".")[2].removesuffix("Head").lower()  # pyright: ignore[reportUnknownArgumentType]
    return name
