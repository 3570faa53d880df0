"""``python -m vtkernels`` is the ``vtkernels`` command."""

from vtkernels.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
