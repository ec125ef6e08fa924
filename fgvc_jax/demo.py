"""A page in the browser, on this machine alone: a photo in, the likeliest classes and why out."""

import os
from typing import Any

from PIL import Image

from fgvc_jax.errors import UserError
from fgvc_jax.explain import draw, heat, why
from fgvc_jax.inference import Classifier

TOP = 5
KIND = "gradcam"
# What the page may load: from this server alone. Gradio's own page asks other servers for a script.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws: data: blob:"


class Demo:
    """Answers for one photo at a time.

    Raises:
      UserError: the run's model gives no classes, or one alone.
    """

    def __init__(self, classifier: Classifier):
        classifier.check_classes()
        if len(classifier.classes) < 2:
            raise UserError(f"{classifier.phase} knows one class; there is nothing to tell apart.")
        self.classifier = classifier
        self.comparator, self.gallery, self.missing = None, None, ""
        try:
            self.gallery = why.Gallery(classifier)
            self.comparator = why.comparator(classifier.phase)
        except UserError as error:
            self.missing = f"Training photos are not shown: {error}."

    def answer(self, file: str) -> tuple[dict[str, float], Image.Image]:
        """The likeliest classes with their probabilities, and why the first and not the second.

        Args:
          file: of a photo.

        Returns:
          ({class: probability}, rows of pictures: the photo with the heat maps of the first and the second
          class; below, where they can be had, the nearest training photo of each, with the same maps).

        Raises:
          UserError: it cannot be read.
        """
        (found,) = heat.explain(self.classifier, [file], batch=1)
        if found.error:
            raise UserError(found.error)
        classes, near = self.classifier.classes, []
        if self.gallery:
            asked = heat.Asked(KIND)
            ((_, near),) = why.neighbours(self.gallery, self.comparator, [found], asked, batch=2)
        rows = [draw.row([(found.seen, "your photo", ""), *self._maps(found)])]
        for label, photo in zip(found.classes, near, strict=False):
            if photo:
                note = f"cosine {photo.cosine:.2f}"
                if photo.same is not None:
                    note += f", same class {100 * photo.same:.0f} %"
                title = f"nearest {classes[label]} in training"
                rows.append(draw.row([(photo.heat.seen, title, note), *self._maps(photo.heat)]))
        best = (-found.probabilities).argsort(kind="stable")[:TOP]
        return {classes[i]: float(found.probabilities[i]) for i in best}, draw.column(rows)

    def _maps(self, found: heat.Heat) -> list[tuple]:
        pictures = []
        for place in (heat.PREDICTED, heat.SECOND):
            label = int(found.classes[place])
            whole = draw.placed(found.maps[KIND][place], found.box, len(found.seen))
            note = f"{100 * found.probabilities[label]:.1f} %"
            title = f"what speaks for {self.classifier.classes[label]}"
            pictures.append((draw.overlay(found.seen, whole), title, note))
        return pictures


def page(demo: Demo) -> Any:
    """The page, a gradio.Blocks; UserError where gradio is not installed."""
    gradio = _gradio()
    with gradio.Blocks(analytics_enabled=False, title="fgvc demo") as blocks:
        gradio.Markdown(
            f"`{demo.classifier.phase}` knows {len(demo.classifier.classes):,} classes."
        )
        with gradio.Row():
            photo = gradio.Image(type="filepath", label="A photo", sources=["upload", "clipboard"])
            label = gradio.Label(num_top_classes=TOP, label="Likeliest classes")
        gradio.Markdown(
            "### Why the first and not the second\nBright is what speaks for the class (Grad-CAM), in the "
            "photo and in the training photos that are most like it."
        )
        # A label of its own would lie on the titles in the picture; 'share' would send it to another server.
        buttons = ["download", "fullscreen"]
        picture = gradio.Image(interactive=False, show_label=False, buttons=buttons)
        if demo.missing:
            gradio.Markdown(demo.missing)

        def answer(file: str | None):
            if file is None:
                return None, None
            try:
                return demo.answer(file)
            except UserError as error:
                raise gradio.Error(str(error)) from None

        photo.change(answer, photo, [label, picture], api_name="answer")
    return blocks


def serve(demo: Demo, port: int, wait: bool = True) -> Any:
    """Serves the page on 127.0.0.1 until Ctrl-C; without `wait` it returns the running gradio.Blocks.

    Raises:
      UserError: the port is taken, or gradio is not installed.
    """
    gradio = _gradio()
    from starlette.middleware import Middleware

    blocks = page(demo)
    try:
        blocks.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
            app_kwargs={"middleware": [Middleware(_OwnServerOnly)]},
        )
    except OSError as error:
        raise UserError(f"--port={port}: {error}") from None
    if wait:
        print(f"open {blocks.local_url} in a browser; Ctrl-C ends it.", flush=True)
        blocks.block_thread()
    return blocks


class _OwnServerOnly:
    """Adds `POLICY` to every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def with_policy(message):
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = message | {"headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, with_policy)


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f"the demo needs a package that is not installed: pip install 'fgvc_jax[demo]' ({error})"
        ) from None
    return gradio
