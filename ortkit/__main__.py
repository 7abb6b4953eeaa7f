"""`python -m ortkit` is `ortkit`, which begins here so that Ctrl-C is heard before the rest is imported."""

from .toolkit.console.leaving import leave_at_interrupt

leave_at_interrupt()

from .toolkit.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
