"""The command ``darkroom``: parse arguments, wire the objects, map errors to exit codes.

Exit codes: 0 fine, 1 a job failed, 2 usage or configuration, 3 another daemon owns the spool.

Annotations are not postponed here, nor in ``bench``: typer would compile all of them, twice, for whichever command.
"""

import errno
import gc
import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from darkroom import __version__
from darkroom.cli.bench import app as bench_commands
from darkroom.cli.completion import complete_failed, complete_known, complete_unended
from darkroom.errors import DarkroomError, UsageError, refusal
from darkroom.visible import visible

app = typer.Typer(
    name="darkroom",
    help="A folder-watching batch daemon for Stable Diffusion: a prompt in inbox/, the picture in done/.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="config.toml; default: $DARKROOM_CONFIG, then ./config.toml."),
]
RootOption = Annotated[
    Path | None, typer.Option("--root", "-r", metavar="DIR", help="The spool, instead of the config's \\[folders].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


app.add_typer(bench_commands, name="bench")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"darkroom {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: ConfigOption = None,
    root: RootOption = None,
    once: Annotated[bool, typer.Option("--once", help="Do what lies in the inbox, then end.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="PNG", help="At the end, a contact sheet of all pictures made in this run."),
    ] = None,
) -> None:
    """Watch the inbox and render what is dropped there, until stopped.

    [dim]darkroom run                     with ./config.toml
    darkroom run --root ~/pictures   with a spool elsewhere
    darkroom run --once              what waits now, then end; 1 if a job failed[/dim]
    """
    from darkroom.cli.run import run_daemon

    raise typer.Exit(run_daemon(config, root, once=once, sheet=sheet))


@app.command()
def submit(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT-or-FILE", help="Prompts, files of jobs, folders of one, or pictures to make again."
        ),
    ],
    config: ConfigOption = None,
    root: RootOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A field of the job, as steps=30.")
    ] = None,
    init_image: Annotated[
        Path | None, typer.Option("--init-image", "-i", metavar="PICTURE", help="The picture to begin with.")
    ] = None,
    mask_image: Annotated[
        Path | None, typer.Option("--mask-image", metavar="PICTURE", help="Where to paint in it: white.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="What the result is called (for one job).")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the verdict; 1 if a job failed.")] = False,
) -> None:
    """Put jobs into the inbox, each whole at once, with the pictures that it begins with inside.

    [dim]darkroom submit "a red circle on a blue background"
    darkroom submit "a house at sunset" --set seed=7 --set count=4 --wait
    darkroom submit tonight/*.json
    darkroom submit prompts.txt --set steps=30   a prompt on each line
    darkroom submit "in oil" --init-image cat.jpg --set strength=0.6
    darkroom submit cat-1.png --set seed=8       the recipe inside, with another seed[/dim]
    """
    from darkroom.cli.submit import submit_jobs

    pictures = {"init_image": init_image, "mask_image": mask_image}
    given = {field: path for field, path in pictures.items() if path is not None}
    raise typer.Exit(submit_jobs(jobs, config, root, settings=set_ or [], pictures=given, name=name, wait=wait))


@app.command()
def status(
    config: ConfigOption = None,
    root: RootOption = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Until Ctrl-C; where it is piped, a line for each change.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what waits, what runs and how it went; whether a daemon is running or not.

    [dim]darkroom status
    darkroom status --watch          a table that keeps up
    darkroom status --json | jq .waiting[/dim]
    """
    from darkroom.cli.status import show_status

    show_status(config, root, as_json=json, watch=watch)


@app.command()
def logs(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A job's name or id; default: the one that runs, or the last.",
            autocompletion=complete_known,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job has its verdict.")] = False,
    config: ConfigOption = None,
    root: RootOption = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines, as they stand in log.jsonl.")] = False,
) -> None:
    """Show what happened to a job: its log.jsonl, while it runs and afterwards.

    [dim]darkroom logs -f
    darkroom logs cat
    darkroom logs team/cat --json | jq .event[/dim]
    """
    from darkroom.cli.logs import show_logs

    show_logs(name, config, root, follow=follow, as_json=json)


@app.command()
def clean(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="TIME", help="Remove results older than 30d, 12h, 2w.")
    ] = None,
    keep: Annotated[int | None, typer.Option("--keep", metavar="N", min=0, help="Keep the newest N.")] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="Keep the newest that fill no more than 20G, 500M.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", metavar="FOLDER", help="done or failed; default: both.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be removed, touch nothing.")] = False,
    config: ConfigOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Remove old results from done/ and failed/; without a rule here, by those of the config.

    Each folder is held to the rules by itself. What darkroom did not make is left alone.

    [dim]darkroom clean --older-than 30d --dry-run
    darkroom clean --only failed --keep 0
    darkroom clean --max-size 100G[/dim]
    """
    from darkroom.cli.clean import clean as clean_results

    clean_results(
        config,
        root,
        older_than=older_than,
        keep=keep,
        max_size=max_size,
        only=only,
        dry_run=dry_run,
        as_json=json,
    )


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made if need be.")]) -> None:
    """Make a folder to begin with: a config.toml that explains every key, and the spool. Overwrites nothing.

    [dim]darkroom init ~/darkroom
    darkroom run --config ~/darkroom/config.toml[/dim]
    """
    from darkroom.cli.init import init as init_folder

    init_folder(folder)


@app.command()
def pause(
    why: Annotated[str, typer.Argument(help="What `darkroom status` is to say.")] = "",
    config: ConfigOption = None,
    root: RootOption = None,
) -> None:
    """Begin no more jobs; the one that runs is finished.

    [dim]darkroom pause
    darkroom pause "the card is needed until six"[/dim]
    """
    from darkroom.cli.control import pause as pause_spool

    pause_spool(config, root, why)


@app.command()
def resume(config: ConfigOption = None, root: RootOption = None) -> None:
    """Go on after a pause.

    [dim]darkroom resume[/dim]
    """
    from darkroom.cli.control import resume as resume_spool

    resume_spool(config, root)


@app.command()
def cancel(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="As `darkroom status` shows them, or ids.", autocompletion=complete_unended
        ),
    ],
    config: ConfigOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Take jobs out of the inbox, and stop those that run at their next step; 1 if there is no such job.

    [dim]darkroom cancel cat
    darkroom cancel team/cat cat.json[/dim]
    """
    from darkroom.cli.control import cancel as cancel_jobs

    raise typer.Exit(cancel_jobs(names, config, root, as_json=json))


@app.command()
def retry(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Folders in failed/.", autocompletion=complete_failed),
    ] = None,
    every: Annotated[bool, typer.Option("--all", "-a", help="All that failed.")] = False,
    config: ConfigOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Put failed jobs into the inbox again; of one that was done in part, only the pictures that are missing.

    [dim]darkroom retry         what failed, and why
    darkroom retry cat
    darkroom retry --all[/dim]
    """
    from darkroom.cli.control import retry as retry_jobs

    raise typer.Exit(retry_jobs(names or [], config, root, every=every, as_json=json))


@app.command()
def check(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Job files.")] = None,
    config: ConfigOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> None:
    """Validate job files without running them; without files, look over config, folders, model and device.

    [dim]darkroom check
    darkroom check cat.json inbox.example/*.json[/dim]
    """
    from darkroom.cli.check import check_files, check_machine

    raise typer.Exit(
        check_files(files, config, root, as_json=json) if files else check_machine(config, root, as_json=json)
    )


@app.command()
def recipe(picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP.")]) -> None:
    """Print the job inside a picture, ready to be dropped: darkroom's own, or A1111's.

    [dim]darkroom recipe done/cat/cat-1.png
    darkroom recipe from-a1111.jpg > inbox/again.json[/dim]
    """
    from darkroom.cli.recipe import print_recipe

    print_recipe(picture)


@app.command()
def models(config: ConfigOption = None, root: RootOption = None, json: JsonOption = False) -> None:
    """List the models and LoRAs that jobs may name: family, size, where they come from; what is wrong with the others.

    [dim]darkroom models
    darkroom models --json[/dim]
    """
    from darkroom.cli.models import list_models

    raise typer.Exit(list_models(config, root, as_json=json))


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in \\[models.NAME] of the config.")],
    config: ConfigOption = None,
    root: RootOption = None,
) -> None:
    """Fetch a model from the hub, so that no job has to: one whose path in the config is hub:owner/name.

    [dim]darkroom pull sdxl[/dim]
    """
    from darkroom.cli.pull import pull as pull_model

    pull_model(name, config, root)


def main() -> None:
    """Run the command line; what a user can mend is a sentence, never a traceback."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # to look for them takes as long as Python's start
    gc.set_threshold(20_000)  # by default a tenth of a short command's time goes to looking for garbage
    if sys.stdout is None:  # whoever called closed it
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name need not be text, nor a terminal know its letters
    try:
        _run_and_flush()
    except DarkroomError as error:
        _complain(error.message)
        sys.exit(error.exit_code)
    except PermissionError as error:
        _complain(refusal(error))
        sys.exit(UsageError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # its reader has enough: it ends as other commands do, without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else it is tried again at Python's end
        _complain(error)
        sys.exit(1)


def _run_and_flush() -> None:
    """Raises BrokenPipeError where nobody reads what is printed, which typer and rich make an exit code of."""
    try:
        app()
    except SystemExit as ending:
        if isinstance(ending.__context__, BrokenPipeError):
            raise ending.__context__ from None
        raise
    finally:
        gc.freeze()  # else Python ends by looking for garbage in all that it imported
        sys.stdout.flush()


def _complain(message: Any) -> None:
    for line in str(message).splitlines():
        print(f"darkroom: {visible(line)}", file=sys.stderr)
