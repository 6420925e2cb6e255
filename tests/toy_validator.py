"""A validator of the toy world: round after round, through whatever happens to it.

`python toy_validator.py CONFIG`: a JSON file {settings, state, rounds, progress, seed, full_disk}. A line per finished round goes to
`progress` once the store has acknowledged it. While the file `full_disk` exists, this process can write nothing.
"""
import json
import os
import random
import resource
import sys
import time
from datetime import datetime
from pathlib import Path

from toy import TOPICS

from omega_lab.settings import load_settings
from omega_lab.validator import open_validator, run_round, set_weights
from omega_lab.validator.shared import tell

HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


def say(path: Path, **facts) -> None:
    "Append a line; nobody reads half of one."
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (json.dumps(facts | {"at": datetime.now().isoformat(timespec="milliseconds")}) + "\n").encode())
    os.close(fd)


def live(config: dict) -> None:
    "Open the state, play rounds until there are enough; an error closes the state and is reported to the caller."
    settings, progress = load_settings(config["settings"], environ={}), Path(config["progress"])
    validator = open_validator(settings, config["state"])
    try:
        while (number := validator.store.next_round()) <= config["rounds"]:
            full = Path(config["full_disk"]).exists()
            resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else HARD, HARD))
            topic = random.Random(f"{config['seed']}/{number}").choice(TOPICS)
            record = run_round(validator, topic)
            weights = set_weights(validator)
            say(progress, round=record.number, rewards={r.hotkey: r.verdict.reward for r in record.responses}, weights=weights.done,
                why=weights.detail, block=weights.block)
        while validator.service and (trouble := tell(validator.store, validator.service)):
            say(progress, error=trouble[:300])
            time.sleep(1)
    finally:
        validator.close()


def main(config: dict) -> None:
    "Go on after each failure, as the schedule would."
    while True:
        try:
            return live(config)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next attempt starts from the state on disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
            say(Path(config["progress"]), error=f"{type(error).__name__}: {error}"[:300])
            time.sleep(0.5)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
