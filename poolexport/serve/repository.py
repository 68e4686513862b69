"""The models that a process serves.

A model is tried in a process of its own before it comes into the state that all processes follow, so an old version is
served until the new one is known to work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from poolexport.errors import InputError, RequestError
from poolexport.serve.check import tried
from poolexport.serve.config import Settings
from poolexport.serve.facts import Facts
from poolexport.serve.model import Model, open_model
from poolexport.serve.protocol import shown
from poolexport.serve.state import Entry, Place, State, Store, in_repository

#: Batching pays where it was measured to give this much more.
GAIN = 1.15


class Repository:
    """The models that this process serves.

    Args:
        store: the folder shared with the other processes.
        settings: of the server.
        folder: where versions of models may appear while the server runs, if anywhere.
    """

    def __init__(self, store: Store, settings: Settings, folder: Path | None = None) -> None:
        self._store = store
        self._settings = settings
        self._folder = folder
        self._open: dict[tuple[str, str], tuple[int, Model]] = {}
        self._latest: dict[str, Model] = {}
        self._entries: tuple[Entry, ...] = ()
        self._stamp = (0, 0)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Everything that is known, served or not."""
        return self._entries

    @property
    def models(self) -> list[Model]:
        """Everything that is served."""
        return [model for _, model in self._open.values()]

    def find(self, name: str, version: str | None = None) -> Model:
        """A model that is served; the latest version where none is named.

        Raises:
            RequestError: there is none (404), or it is not loaded (400).
        """
        if not version:
            model = self._latest.get(name)
            if model is not None:
                return model
        elif (name, version) in self._open:
            return self._open[name, version][1]
        known = [entry for entry in self._entries if entry.place.name == name]
        if not known:
            raise RequestError(404, f"there is no model {shown(name)}")
        if version and all(entry.place.version != version for entry in known):
            raise RequestError(404, f"the model {shown(name)} has no version {shown(version)}")
        raise RequestError(400, f"the model {shown(name)} is not loaded")

    def versions(self, name: str) -> list[str]:
        """Versions of a model that are served, oldest first."""
        return sorted((version for known, version in self._open if known == name), key=int)

    @property
    def changed(self) -> bool:
        """Whether the state is another than the one that is served."""
        return self._store.stamp != self._stamp

    def follow(self) -> bool:
        """Serve what the state says, if it changed; whether it did.

        A model whose file is no longer the one that was tried stays as it is served, or is not served at all.
        """
        stamp = self._store.stamp
        if stamp == self._stamp:
            return False
        state = self._store.read()
        opened: dict[tuple[str, str], tuple[int, Model]] = {}
        entries = list(state.entries)
        for index, entry in enumerate(state.entries):
            key = entry.place.name, entry.place.version
            if not entry.ready or entry.facts is None:
                continue
            if key in self._open and self._open[key][0] == entry.loads:
                opened[key] = self._open[key]
                continue
            try:
                opened[key] = entry.loads, self._opened(entry.place, entry.facts)
            except InputError as error:
                entries[index] = replace(entry, ready=key in self._open, reason=_without_paths(str(error), entry.place))
                if key in self._open:
                    opened[key] = self._open[key]
        latest: dict[str, Model] = {}
        for (name, version), (_, model) in opened.items():
            if name not in latest or int(version) > int(latest[name].version):
                latest[name] = model
        self._open, self._latest, self._entries, self._stamp = opened, latest, tuple(entries), stamp
        self._store.reached(state.number)
        return True

    def load(self, name: str) -> None:
        """Try all versions of a model anew, and serve them in every process; blocks.

        Raises:
            RequestError: there is no such model (404), a version is refused (400), or there is no room to write down
                what is served (503); what was served still is.
        """
        with self._store.alone():
            state = self._store.read()
            known = {entry.place: entry for entry in state.entries}
            if self._folder is not None:
                for place in in_repository(self._folder):
                    known.setdefault(place, Entry(place, False))
            mine = [place for place in known if place.name == name]
            if not mine:
                raise RequestError(404, f"there is no model {shown(name)}")
            refused = ""
            for place in mine:
                old = known[place]
                try:
                    found = tried(Path(place.path), self._settings.limits)
                    known[place] = Entry(place, True, "", found, old.loads + 1)
                except InputError as error:
                    refused = _without_paths(str(error), place)
                    known[place] = Entry(place, old.ready, refused, old.facts, old.loads)
            number = self._change(state, known)
        self._store.wait(number)
        if refused:
            raise RequestError(400, f"the model {shown(name)} was not loaded: {refused}")

    def unload(self, name: str) -> None:
        """Stop serving a model in every process; blocks.

        Raises:
            RequestError: there is no such model (404), or no room to write down what is served (503).
        """
        with self._store.alone():
            state = self._store.read()
            known = {entry.place: entry for entry in state.entries}
            mine = [place for place in known if place.name == name]
            if not mine:
                raise RequestError(404, f"there is no model {shown(name)}")
            for place in mine:
                known[place] = Entry(place, False, "unloaded", known[place].facts, known[place].loads)
            number = self._change(state, known)
        self._store.wait(number)

    def _change(self, state: State, known: Mapping[Place, Entry]) -> int:
        try:
            self._store.write(State(state.number + 1, tuple(known.values())))
        except OSError as error:
            raise RequestError(503, f"the server cannot write down what it serves: {error.strerror}") from error
        return state.number + 1

    def _opened(self, place: Place, facts: Facts) -> Model:
        return open_model(place.name, place.version, facts, self._settings, together=self._together(facts))

    def _together(self, facts: Facts) -> int:
        """How much may be run together: nothing, anything, or as much as was measured to pay."""
        if self._settings.batching == "auto":
            return facts.measured if facts.gain >= GAIN else 0
        return sys.maxsize if self._settings.batching == "on" else 0


def _without_paths(text: str, place: Place) -> str:
    """An error for people elsewhere, whom the folders of this machine do not concern."""
    return text.replace(f"{place.path} is refused: ", "").replace(place.path, "the model")
