"""
Runs inside a throw-away host: calls Salt functions for the tests without a new Salt process each time.

Reads one JSON request per line, answers with one JSON line.  Modules are synced and loaded as ``salt-call --local``
does it, arguments take the same way as a job's, states go through Salt's own state compiler.

    {"do": "call" | "state" | "beacon", "fun": "iptlive.plan",
     "args": [], "kwargs": {}, "pillar": {} | null, "opts": {} | null}
    {"value": ..., "retcode": 0, "error": null | "CommandExecutionError", "message": "", "log": [["INFO", "..."]]}
"""

import copy
import functools
import json
import logging
import os
import sys

import salt.beacons
import salt.config
import salt.loader
import salt.minion
import salt.state
import salt.utils.extmods

FORMS = ("modules", "states", "output", "beacons")


class LogLines(logging.Handler):
    """Keeps what our own modules log during one request."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines = []

    def emit(self, record):
        if "iptlive" in record.name:
            self.lines.append([record.levelname, record.getMessage()])


class Salt:
    """The loaded modules; loaded anew when a request asks for another pillar or other options."""

    def __init__(self, options):
        self.opts = salt.config.apply_minion_config(options)
        self.opts["grains"] = salt.loader.grains(self.opts)
        for form in FORMS:
            salt.utils.extmods.sync(self.opts, form)
        self.context = {}
        # Loading takes a tenth of a second: keep the last few, for runs with and without test=True.
        self.loaded = functools.lru_cache(maxsize=8)(self._load)

    def _load(self, settings):
        """The execution functions, the state compiler and the beacons for a pillar and options, given as JSON."""
        pillar, opts = json.loads(settings)
        settings = copy.deepcopy(self.opts)
        settings.update(opts, pillar=pillar)
        functions = salt.loader.minion_mods(settings, context=self.context)
        compiler = salt.state.State(settings, initial_pillar=pillar, context=self.context)
        return functions, compiler, salt.beacons.Beacon(settings, functions)

    def run(self, request):
        settings = json.dumps([request["pillar"] or {}, request["opts"] or {}], sort_keys=True)
        functions, compiler, beacons = self.loaded(settings)
        if request["do"] == "beacon":
            return self._beacon(beacons, request)
        return self._call(functions, request) if request["do"] == "call" else self._state(compiler, request)

    @staticmethod
    def _call(functions, request):
        function = functions[request["fun"]]
        keywords = [{"__kwarg__": True, name: value} for name, value in request["kwargs"].items()]
        job = {"fun": request["fun"], "jid": "20200101000000000000", "pid": os.getpid(), "tgt": "lab"}
        args, kwargs = salt.minion.load_args_and_kwargs(function, request["args"] + keywords, data=job)
        return function(*args, **kwargs)

    @staticmethod
    def _state(compiler, request):
        state, fun = request["fun"].split(".")
        name = request["args"][0]
        low = {"state": state, "fun": fun, "name": name, "__id__": name, "__sls__": "lab", "__env__": "base"}
        return compiler.call({**low, **request["kwargs"], "order": 1})

    @staticmethod
    def _beacon(beacons, request):
        """The events of so many intervals, one after the other."""
        intervals, config = request["args"]
        return [beacons.process({request["fun"]: config}, {}) for _ in range(intervals)]


def answer(loaded, request, lines):
    loaded.context.clear()
    lines.clear()
    error, message, value = None, "", None
    try:
        value = loaded.run(request)
        json.dumps(value)
    except Exception as err:  # noqa: BLE001 (the caller gets every failure by name, and raises it)
        error, message, value = type(err).__name__, str(err), None
    retcode = loaded.context.get("retcode", 0)
    return {"value": value, "retcode": retcode, "error": error, "message": message, "log": list(lines)}


def main():
    # Answers have a descriptor of their own: what Salt or a program prints must not get between them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    handler = LogLines()
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    loaded = Salt(json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(answer(loaded, json.loads(line), handler.lines)), file=answers, flush=True)


if __name__ == "__main__":
    main()
