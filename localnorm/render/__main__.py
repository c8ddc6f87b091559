"""``python -m localnorm.render numbers | latex | readme | reproducing | model-cards | web``: what a renderer's stage runs."""

import argparse
import sys
from pathlib import Path

from localnorm import paths
from localnorm.render import latex, numbers, readme, reproducing

RENDERERS = {
    "numbers": numbers.write,
    "latex": latex.write,
    "readme": readme.write,
    "reproducing": reproducing.write,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m localnorm.render", description=__doc__)
    parser.add_argument("what", choices=[*RENDERERS, "model-cards", "web"], help="the text to write")
    parser.add_argument("output", nargs="?", type=Path, help="folder of the web pages; default: data/html")
    given = parser.parse_args(arguments)
    try:
        if given.what == "web":
            from localnorm.render import web  # here, since it needs nbconvert

            print(f"open {web.write_site(given.output or paths.project() / 'data' / 'html')}")
        elif given.what == "model-cards":
            from localnorm.render import model_cards  # here, since it needs torch

            model_cards.write()
        else:
            RENDERERS[given.what]()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
