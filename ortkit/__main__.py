"""Entry point of `ortkit` and `python -m ortkit`; handles Ctrl-C before anything else is imported."""

from .toolkit.console.leaving import leave_at_interrupt

leave_at_interrupt()

from .toolkit.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
