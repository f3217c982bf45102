"""Runs inside Triton's python backend. Every request is answered by a thread of its own, a token at a time.

In a prompt, "!fail" ends the answer in an error after three tokens, "!stop" after five, "!utf8" answers with
characters of two bytes, "!echo" with the inputs that arrived, "!running" with the number of answers under way,
"!chain" with tokens that each follow from all those before, as a language model's do.
"""

import codecs
import itertools
import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

from engines.fake_tokens import digest_prompt, fake_token

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
NUM_BEFORE_FAILURE, NUM_BEFORE_STOP = 3, 5
TEXT_INPUTS = ("text_input", "input_ids")


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.convention = parameters["convention"]
        self.accumulates = self.convention == "llmapi" or parameters.get("accumulate_tokens") == "true"
        self.delay = float(parameters["delay_ms"]) / 1000
        self.version = int(args["model_version"])
        self.decoupled = config["model_transaction_policy"]["decoupled"]
        self.batched = config["max_batch_size"] > 0
        self.output_types = {o["name"]: pb_utils.triton_string_to_numpy(o["data_type"]) for o in config["output"]}
        self.running = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        if not self.decoupled:
            return self.whole_batch(requests)
        for request in requests:
            thread = threading.Thread(target=self.stream, args=(Ask(self, request), request.get_response_sender()))
            thread.start()
        return None

    def whole_batch(self, requests):
        """As long as its longest answer, however many there are."""
        asks = [Ask(self, request) for request in requests]
        time.sleep(self.delay * max(ask.max_tokens for ask in asks))
        return [pb_utils.InferenceResponse(ask.outputs(ask.tokens(), True)) for ask in asks]

    def stream(self, ask, sender):
        with self.lock:
            self.running += 1
        try:
            self.send_all(ask, sender)
        except Exception as error:
            message = pb_utils.TritonError(str(error))
            sender.send(pb_utils.InferenceResponse(error=message), flags=FINAL)
        finally:
            with self.lock:
                self.running -= 1

    def send_all(self, ask, sender):
        tokens = ask.tokens()
        for index, token in enumerate(tokens):
            time.sleep(self.delay)
            if sender.is_cancelled():
                break
            if "!fail" in ask.text and index == NUM_BEFORE_FAILURE:
                raise RuntimeError("the model was told to fail")
            sender.send(pb_utils.InferenceResponse(ask.outputs([token], index == len(tokens) - 1)))
        sender.send(flags=FINAL)


class Ask:
    """One request: its inputs, its answer, and what was said of it so far."""

    def __init__(self, model, request):
        self.model = model
        self.inputs = {t.name(): t.as_numpy() for t in request.inputs()}
        if "input_ids" in self.inputs:
            length = int(self.inputs["input_lengths"].flat[0])
            self.prompt = [int(i) for i in self.inputs["input_ids"].flat][:length]
            self.text = bytes(i for i in self.prompt if i < 256).decode(errors="replace")
        else:
            self.text = self.inputs["text_input"].flat[0].decode()
            self.prompt = list(self.text.encode())
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.sent = b""

    @property
    def max_tokens(self):
        names = ("max_tokens", "request_output_len", "sampling_param_max_tokens")
        found = [int(self.inputs[name].flat[0]) for name in names if name in self.inputs]
        return found[0] if found else json.loads(self.inputs["sampling_parameters"].flat[0])["max_tokens"]

    def tokens(self):
        if "!echo" in self.text:
            return list(json.dumps(self.arrived(), sort_keys=True).encode())
        if "!running" in self.text:
            return list(str(self.model.running - 1).encode())
        if "!utf8" in self.text:
            return list(itertools.islice(itertools.cycle("é".encode()), self.max_tokens))
        if "!chain" in self.text:
            return self.chain()
        # Versions answer differently, so that a test can tell them apart.
        digest = digest_prompt(self.prompt if self.model.version == 1 else [*self.prompt, self.model.version])
        return [fake_token(digest, index) for index in range(min(self.max_tokens, self.end))]

    def chain(self):
        known = list(self.prompt)
        while len(known) < len(self.prompt) + self.max_tokens:
            known.append(fake_token(digest_prompt(known), 0))
        return known[len(self.prompt) :]

    @property
    def end(self):
        return NUM_BEFORE_STOP if "!stop" in self.text else self.max_tokens

    def arrived(self):
        return {
            name: [v.decode() if isinstance(v, bytes) else v for v in value.flatten().tolist()]
            for name, value in self.inputs.items()
            if name not in TEXT_INPUTS
        }

    def outputs(self, tokens, is_last):
        self.sent += bytes(tokens)
        if self.model.convention == "tokens":
            tokens = tokens if self.model.decoupled else self.prompt + tokens
            values = {"output_ids": [tokens], "sequence_length": [len(tokens)]}
        else:
            so_far = self.sent.decode(errors="replace")
            delta = self.decoder.decode(bytes(tokens), is_last)
            repeated = "" if self.model.decoupled or self.wants("exclude_input_in_output") else self.text
            values = {"text_output": [repeated + (so_far if self.model.accumulates else delta)]}
        if self.wants("return_finish_reason"):
            stopped = "!stop" in self.text and self.max_tokens > self.end
            values["finish_reason"] = [("stop" if stopped else "length") if is_last else "None"]
        if self.wants("return_num_input_tokens"):
            values["num_input_tokens"] = [len(self.prompt)]
        if self.wants("return_num_output_tokens"):
            values["num_output_tokens"] = [len(tokens)]
        return [self.tensor(name, value) for name, value in values.items()]

    def wants(self, name):
        return name in self.inputs and bool(self.inputs[name].flat[0])

    def tensor(self, name, value):
        kind = self.model.output_types[name]
        if kind is np.object_:
            value = [text.encode() for text in value]
        array = np.array(value, dtype=kind)
        return pb_utils.Tensor(name, array[np.newaxis] if self.model.batched else array)
