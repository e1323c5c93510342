"""The chat in a browser: the sides beside each other, served to this machine alone.

Importing this loads Gradio, which takes seconds. Its statistics are off, and the page uses the
reader's system fonts: no request leaves the machine, unless `share` requests a public link.
"""

import html
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr

from eval import Completion
from posttrain.base.errors import PostTrainError
from posttrain.chat.conversation import Talk
from posttrain.chat.models import HOST

HEIGHT = 380  # pixels of a side
EVERY = 0.1  # seconds between updates of a reply: a page that draws each token hears no click
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important;
  margin: 0 auto !important; }
.about { overflow-wrap: anywhere; color: var(--body-text-color-subdued); }
.about h1 { color: var(--body-text-color); margin: 0 0 4px; font-size: 22px; }
.about p { margin: 0; }
.side { gap: 8px !important; }
.side h2 { margin: 0; font-size: 16px; }
.side [aria-label="Clear"] { display: none; }  /* it would clear this side alone */
.chips .prose { display: flex; flex-wrap: wrap; gap: 6px; min-height: 26px; }
.chip { border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 1px 10px;
  font-size: 13px; color: var(--body-text-color); background: var(--background-fill-secondary); }
.chip.good { border-color: #2f9e66; } .chip.bad { border-color: #cf5340; }
.chip.good::before { content: "✓ "; } .chip.bad::before { content: "✗ "; }
textarea::placeholder { color: var(--body-text-color) !important; opacity: 0.65; }
@media (max-width: 700px) { .side .bubble-wrap, .side .block { max-height: 280px; } }
"""
Update = dict[Any, Any]


def serve(talk: Talk, title: str, examples: list[str], port: int, share: bool) -> None:
    """Serve the page until a signal ends it."""
    page = Page(talk, title, examples)
    page.open(port, share)
    try:
        threading.Event().wait()
    finally:
        page.close()


class Page:
    """The page of a chat. Each visitor has a separate conversation; the model answers one question
    at a time."""

    def __init__(self, talk: Talk, title: str, examples: list[str]) -> None:
        self._talk = talk
        self._pressed: defaultdict[str | None, list[str]] = defaultdict(list)
        """The buttons that visitors, by their session, pressed to end replies: `stop`, `clear`."""
        with gr.Blocks(title=title, analytics_enabled=False) as self._blocks:
            self._build(title, examples)
        self._blocks.queue(default_concurrency_limit=1)

    def open(self, port: int, share: bool) -> None:
        """Start to serve, and print where."""
        for name in ("NO_PROXY", "no_proxy"):  # Gradio requests its page to see that it is up
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
        text, code = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
        theme = gr.themes.Base(primary_hue="blue", font=text, font_mono=code)
        _, url, public = self._blocks.launch(
            server_name=HOST,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size=1,  # nothing is uploaded here, but Gradio would accept files
            theme=theme,
            css=CSS,
        )
        print(f"Open {url} in a browser; Ctrl-C ends it.", flush=True)
        if public:
            print(f"Public link, for anyone who has it: {public}", flush=True)

    def close(self) -> None:
        self._blocks.close(verbose=False)

    def _build(self, title: str, examples: list[str]) -> None:
        sides = self._talk.sides
        about = "".join(f"<p><b>{side.name}</b> {html.escape(side.about)}</p>" for side in sides)
        gr.HTML(f"<h1>{html.escape(title)}</h1>{about}", elem_classes="about")
        self._box = gr.Textbox(
            label="Your question",
            placeholder="Enter sends, Shift+Enter starts a new line",
            lines=1,  # with more lines Gradio swaps Enter and Shift+Enter
            max_lines=6,
        )
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", min_width=90)
            stop = gr.Button("Stop", min_width=90)
            clear = gr.Button("Clear", min_width=90)
        self._chats, self._chips = {}, {}
        with gr.Row():
            for side in sides:
                with gr.Column(min_width=300, elem_classes="side"):
                    gr.HTML(f"<h2>{side.name}</h2>", padding=False)
                    self._chats[side.name] = gr.Chatbot(
                        label=side.name,
                        show_label=False,
                        height=HEIGHT,
                        render_markdown=False,  # a model's text as it is, with its tags
                        buttons=[],
                        feedback_options=None,
                    )
                    self._chips[side.name] = gr.HTML(elem_classes="chips", padding=False)
        if examples:
            gr.Examples(examples, self._box, label="Held-out questions")
        with gr.Accordion("System prompt", open=False):
            system = gr.Textbox(
                self._talk.system or "",
                show_label=False,
                container=False,
                lines=2,
                placeholder="None",
            )
        self._state = gr.State(None)
        shown = [self._box, *self._chats.values(), *self._chips.values(), self._state]
        since = gr.State(0)
        # A question may wait in the queue; a button that is pressed meanwhile counts.
        question = gr.on([ask.click, self._box.submit], self._count, None, since, queue=False)
        question.then(self._answer, [self._box, system, self._state, since], shown)
        # Not queued: they end the reply at the head of the queue.
        stop.click(self._stop, queue=False)
        clear.click(self._clear, None, shown, queue=False)

    def _count(self, request: gr.Request) -> int:
        """How often this visitor has ended a reply."""
        return len(self._pressed[request.session_hash])

    def _ended(self, request: gr.Request, since: int) -> str:
        """What this visitor pressed first to end the replies to a question; empty if nothing."""
        return next(iter(self._pressed[request.session_hash][since:]), "")

    def _answer(
        self, question: str, system: str, talk: Talk | None, since: int, request: gr.Request
    ) -> Iterator[Update]:
        talk = talk or replace(self._talk, turns={}, rows=[])
        talk.system = system.strip() or None
        if not question.strip() or self._ended(request, since):
            return
        talk.ask(question.strip())
        empty = dict.fromkeys(self._chips.values(), "")
        yield {self._box: "", self._state: talk, **empty, **self._messages(talk)}
        for side in talk.sides:
            reply = Completion("", 0, truncated=True)
            try:
                with closing(talk.answer(side)) as replies:
                    shown = 0.0
                    for reply in replies:  # noqa: B007  # its last value is
                        if self._ended(request, since):
                            break
                        if time.monotonic() - shown >= EVERY:
                            shown = time.monotonic()
                            yield self._messages(talk)
            except PostTrainError as error:
                raise gr.Error(str(error), print_exception=False) from None
            ended = self._ended(request, since)
            if ended == "clear":  # what is yielded last stays on the page
                yield self._nothing()
                return
            notes = [("stopped", "")] if ended else talk.notes(side, reply)
            chips = "".join(f'<span class="chip {k}">{html.escape(t)}</span>' for t, k in notes)
            yield {**self._messages(talk), self._chips[side.name]: chips}
            if ended:
                return

    def _messages(self, talk: Talk) -> Update:
        """The messages of each side, with the reply that is being written."""
        return {
            chat: [
                {"role": role, "content": row[key]}
                for row in talk.rows
                for role, key in (("user", "question"), ("assistant", name))
                if row.get(key)
            ]
            for name, chat in self._chats.items()
        }

    def _stop(self, request: gr.Request) -> None:
        self._pressed[request.session_hash].append("stop")

    def _clear(self, request: gr.Request) -> Update:
        self._pressed[request.session_hash].append("clear")
        return {self._box: "", self._state: None, **self._nothing()}

    def _nothing(self) -> Update:
        return {**dict.fromkeys(self._chats.values()), **dict.fromkeys(self._chips.values(), "")}
