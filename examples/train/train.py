"""Trains a small DeepSeek-V3 model on arithmetic word problems and writes it as a Hugging Face folder.

    python examples/train/train.py --out FOLDER --minutes 6

One GPU, minutes. `--minutes` bounds the training itself and stretches the schedule over it; `--steps` fixes
the number of steps instead, and then the same command gives the same data and schedule again.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

STARTED = time.monotonic()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from answers import exact_match  # noqa: E402
from architecture import CONFIG, GENERATION_CONFIG  # noqa: E402
from batches import Workers  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from training import Settings, Trainer, load_state, save_state, write_model  # noqa: E402
from vocabulary import train_tokenizer, write_tokenizer  # noqa: E402

import mla_jax  # noqa: E402

FINISHING_SECONDS = 60.0
"""Kept free at the end of --total-minutes for the last evaluation and the export."""

AHEAD = 3
"""Steps that are handed to the device before the host waits for the oldest one."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=6.0, help="of training (default %(default)s)")
    length.add_argument("--steps", type=int, help="number of steps, whatever they take")
    parser.add_argument(
        "--total-minutes", type=float, default=9.0, help="of everything, from start to export"
    )
    parser.add_argument("--batch", type=int, default=512, help="problems a step")
    parser.add_argument("--length", type=int, default=152, help="tokens of a padded problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=max(1, min(8, (os.cpu_count() or 2) - 1)))
    parser.add_argument(
        "--eval-every", type=float, default=60.0, help="seconds between evaluations; 0 for none"
    )
    parser.add_argument("--eval-problems", type=int, default=256)
    parser.add_argument("--final-problems", type=int, default=1000)
    parser.add_argument("--eval-rows", type=int, default=256, help="sequences decoded together")
    parser.add_argument("--save", type=Path, help="file for master weights and optimiser, written at the end")
    parser.add_argument(
        "--save-every", type=float, default=0.0, help="seconds between saves; 0 for the end only"
    )
    parser.add_argument("--resume", type=Path, help="file of --save to go on from")
    parser.add_argument("--log-every", type=int, default=50, help="steps between lines of progress")
    parser.add_argument(
        "--exact-products", action="store_true", help="gradients in full float32, without tensor cores"
    )
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=value)
    return parser.parse_args(argv)


class Clock:
    """How much of the run is done: by steps, or by time of training."""

    def __init__(self, options: argparse.Namespace, step: int, seconds: float) -> None:
        self._steps, self._before = options.steps, seconds
        self._deadline = STARTED + 60.0 * options.total_minutes - FINISHING_SECONDS
        self._seconds = 60.0 * options.minutes
        self._started = time.monotonic()
        if self._steps is None:
            self._seconds = max(1.0, min(self._seconds, seconds + self._deadline - self._started))
        self.step = step

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        if self._steps is not None:
            return self.step / self._steps
        return min(1.0, self.seconds / self._seconds)

    @property
    def remaining(self) -> float:
        done = self.progress
        return self.seconds * (1 - done) / done if done else float("inf")


def hardware() -> str:
    device = jax.devices()[0]
    return f"{device.device_kind} ({device.platform}), {platform.machine()}, {os.cpu_count()} CPU cores"


def commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def draw_curve(folder: Path, curve: list[tuple[int, float, float]]) -> None:
    """loss.csv, and loss_curve.png where matplotlib is installed."""
    lines = ["step,loss,learning_rate", *(f"{step},{loss:.5f},{rate:.3e}" for step, loss, rate in curve)]
    (folder / "loss.csv").write_text("\n".join(lines) + "\n")
    try:
        import matplotlib
    except ImportError:
        say("matplotlib is not installed: the curve is in loss.csv only")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=100)
    axes.plot([step for step, *_ in curve], [loss for _, loss, _ in curve], linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a solution token (nats)")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "loss_curve.png")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer: Tokenizer = train_tokenizer(CONFIG["vocab_size"])
    write_tokenizer(tokenizer, options.out)
    config = mla_jax.ModelConfig.from_hf(CONFIG)
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    trainer = Trainer(config, settings, fast_products=not options.exact_products)
    state = trainer.init(options.seed)
    step, seconds = 0, 0.0
    if options.resume is not None:
        state, step, seconds = load_state(options.resume, state)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(f"{parameters:,} parameters, {hardware()}, jax {jax.__version__}")

    def evaluate(split: Any, number: int, *, mxfp4: bool = False) -> float:
        model = trainer.frozen(state.params, mxfp4=mxfp4)
        right, wrong = exact_match(
            model, tokenizer, split, number, rows=min(number, options.eval_rows), length=options.length + 8
        )
        say(f"{split}{' with MXFP4 weights' if mxfp4 else ''}: {right} of {number} right")
        if wrong:
            print(wrong[0], flush=True)
        return right / number

    curve: list[tuple[int, float, float]] = []
    workers = Workers(
        options.out / "tokenizer.json", options.seed, options.batch, options.length, step, options.workers
    )
    with workers:
        batches = iter(workers)
        batch = next(batches)
        say("compiling")
        # On a copy, because a step takes its state's memory; what comes of it is thrown away.
        spare = jax.tree.map(lambda leaf: leaf + 0, state)
        jax.block_until_ready(trainer.run_step(spare, batch, 0, 0.0))
        if options.eval_every:
            evaluate("test", options.eval_problems)
        clock = Clock(options, step, seconds)
        say("training")
        pending: deque[tuple[int, float, Any]] = deque()
        tokens = logged_tokens = 0
        logged_at = evaluated_at = saved_at = time.monotonic()
        while clock.progress < 1.0:
            progress = clock.progress
            state, report = trainer.run_step(state, batch, clock.step, progress)
            clock.step += 1
            tokens += int(batch.used.sum())
            pending.append((clock.step, settings.rate(progress), report))
            if clock.progress < 1.0:
                batch = next(batches)
            if len(pending) > AHEAD:
                at, rate, oldest = pending.popleft()
                curve.append((at, float(oldest.loss), rate))
                if at % options.log_every == 0:
                    now = time.monotonic()
                    recent = np.mean([loss for _, loss, _ in curve[-options.log_every :]])
                    say(
                        f"step {at}  loss {recent:.4f}  gradient {float(oldest.gradient_norm):.2f}  rate {rate:.1e}  "
                        f"{(tokens - logged_tokens) / (now - logged_at):,.0f} tokens/s  imbalance "
                        f"{np.max(np.asarray(oldest.imbalance)):.2f}  {clock.remaining:.0f} s to go"
                    )
                    logged_tokens, logged_at = tokens, now
            if options.eval_every and time.monotonic() - evaluated_at > options.eval_every:
                evaluate("test", options.eval_problems)
                evaluated_at = time.monotonic()
            if options.save and options.save_every and time.monotonic() - saved_at > options.save_every:
                save_state(options.save, state, clock.step, clock.seconds)
                saved_at = time.monotonic()
        curve += [(at, float(report.loss), rate) for at, rate, report in pending]
    seconds = clock.seconds
    if options.save:
        save_state(options.save, state, clock.step, seconds)

    write_model(options.out / "model.safetensors", state.params, config)
    (options.out / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=1) + "\n")
    # Last, so that a folder with a config is a complete checkpoint.
    (options.out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    say(f"wrote {options.out}")
    accuracy = {
        "test": evaluate("test", options.final_problems),
        "unseen": evaluate("unseen", options.final_problems),
        "test_mxfp4": evaluate("test", options.final_problems, mxfp4=True),
    }
    record = {
        "command": shlex.join(["python", *sys.argv] if argv is None else ["python", __file__, *argv]),
        "commit": commit(),
        "hardware": hardware(),
        "jax": jax.__version__,
        "seed": options.seed,
        "parameters": parameters,
        "steps": clock.step,
        "training_seconds": round(seconds, 1),
        "total_seconds": round(time.monotonic() - STARTED, 1),
        "problems": clock.step * options.batch,
        "tokens": tokens,
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "final_loss": float(np.mean([loss for _, loss, _ in curve[-100:]])) if curve else None,
        "accuracy_problems": options.final_problems,
        "accuracy": accuracy,
        "settings": {**asdict(settings), "batch": options.batch, "length": options.length},
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    draw_curve(options.out, curve)
    say("done")
    return record


if __name__ == "__main__":
    main()
