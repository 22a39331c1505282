"""How a command ends: with a sentence and a status, never with a traceback on the screen."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from types import FrameType

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


class _Terminated(KeyboardInterrupt):
    status = STOPPED[signal.SIGTERM]


def in_words(command: str, action: Callable[[], None]) -> int:
    """Do something, and put whatever it raises into words on stderr.

    Returns:
        0; 1 where numbers were not finite; 2 for bad input, files that cannot be read or written, and errors that are
        not known, whose traceback is then in a file that is named; 130 or 143 after Ctrl-C or SIGTERM.
    """

    def say(words: object) -> None:
        print(f"lorachord {command}: {words}", file=sys.stderr)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        action()
    except KeyboardInterrupt as error:
        say(str(error) or "stopped; a run that was begun goes on with --resume.")
        return getattr(error, "status", STOPPED[signal.SIGINT])
    except FloatingPointError as error:
        say(error)
        return 1
    except (json.JSONDecodeError, UnicodeError) as error:
        # They are ValueErrors, but no sentences.
        say(_unknown(error))
        return 2
    except (ValueError, OSError) as error:
        # Bad input, in words; a traceback would hide them.
        say(error)
        return 2
    except Exception as error:
        say(_unknown(error))
        return 2
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _unknown(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="lorachord-", suffix=".txt", delete=False, encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    words = (str(error).strip().splitlines() or [""])[0][:200]
    return f"something that is not foreseen: {type(error).__name__}: {words}. Please report it with {file.name}."
