"""The browser client that is shipped is what its source makes."""

from __future__ import annotations

import json
from pathlib import Path

import eventstream
from tests.support.node import JS, node, npm
from tests.support.processes import ROOT

STATIC = ROOT / "eventstream/static/eventstream"


def test_shipped_files_are_built_from_the_source(tmp_path: Path) -> None:
    node("build.ts", str(tmp_path))

    built = sorted(path.name for path in tmp_path.iterdir())
    assert built == ["eventstream.js", "eventstream.module.js"]
    for name in built:
        message = f"{name} is not what js/src makes: run `make js`"
        assert (STATIC / name).read_bytes() == (tmp_path / name).read_bytes(), message
        assert len((STATIC / name).read_bytes()) < 20_000


def test_version_is_that_of_the_python_package() -> None:
    package = json.loads((JS / "package.json").read_text())

    assert package["version"] == eventstream.__version__


def test_npm_package_has_module_types_and_no_dependencies(tmp_path: Path) -> None:
    npm("pack", "--pack-destination", str(tmp_path), cwd=JS)
    (tarball,) = tmp_path.glob("*.tgz")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    npm("install", "--no-package-lock", "--offline", str(tarball), cwd=tmp_path)
    (tmp_path / "page.ts").write_text(
        'import { EventStream, type Status } from "django-eventstream-client";\n'
        'const stream = new EventStream("http://localhost/", { share: true });\n'
        'stream.addEventListener("stream-reset", (e) => e.channels.join());\n'
        'stream.addEventListener("stream-status", (e) => { const s: Status = e.status; s; });\n'
        'stream.addEventListener("order", (e) => e.data.length);\n'
        "// @ts-expect-error: it is a string\n"
        "const wrong: number = stream.lastEventId;\n"
        "stream.close(); export { wrong };\n"
    )

    node(
        str(JS / "node_modules/.bin/tsc"), "--noEmit", "--strict", "--lib", "es2022,dom",
        "--module", "nodenext", "--types", "", "page.ts", cwd=tmp_path,
    )  # fmt: skip
    script = (
        'import { EventStream } from "django-eventstream-client";'
        'console.log(new EventStream("http://127.0.0.1:1/").status); process.exit()'
    )
    output = node("--input-type=module", "-e", script, cwd=tmp_path)
    assert output.split() == ["connecting"]
    # A bundler leaves out what has no effect but by what is imported from it.
    script = (
        f'import {{ build }} from "{JS.as_uri()}/node_modules/esbuild/lib/main.js";'
        "const stdin = { contents: \"import 'django-eventstream-client/classic'\", "
        'resolveDir: "." };'
        "const options = { stdin, bundle: true, write: false };"
        "const { outputFiles } = await build(options);"
        'console.log(outputFiles[0].text.includes("stream-open"))'
    )
    assert node("--input-type=module", "-e", script, cwd=tmp_path).strip() == "true"
    modules = tmp_path / "node_modules"
    assert [p.name for p in modules.iterdir() if p.is_dir()] == [
        "django-eventstream-client"
    ]


def test_classic_script_gives_its_names_to_the_window() -> None:
    script = (
        f"require({str(STATIC / 'eventstream.js')!r});"
        "console.log(typeof EventStream, typeof StreamErrorEvent)"
    )

    assert node("--input-type=commonjs", "-e", script).split() == ["function"] * 2
