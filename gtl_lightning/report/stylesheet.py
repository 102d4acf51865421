"""The report page's style sheet: system fonts, two themes, tables that scroll on a phone."""

CSS = """\
:root { --ink: #1c2024; --muted: #62686f; --line: #e4e7ea; --paper: #ffffff; --soft: #f6f7f8; --warn: #fff6e0;
  --warn-line: #e0a100; --link: #0067a5; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: clamp(1.7rem, 4.5vw, 2.5rem); line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 1.25rem; }
h2 { font-size: 1.4rem; line-height: 1.3; letter-spacing: -0.01em; margin: 4rem 0 0.75rem; padding-top: 1.5rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2.25rem 0 0.5rem; }
p, ul { max-width: 44rem; margin: 0.75rem 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
li { margin: 0.3rem 0; }
a { color: var(--link); }
.lead { font-size: 1.2rem; line-height: 1.5; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 4px;
  padding: 0.75rem 1rem; }
.note, figcaption { color: var(--muted); font-size: 0.875rem; line-height: 1.5; max-width: 48rem; }
.note { margin-top: 0.5rem; }
figure { margin: 2rem 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem 1rem; }
.panels picture, .panels img { display: block; width: 100%; max-width: 36rem; height: auto; }
figcaption { margin-top: 0.75rem; }
.table { overflow-x: auto; margin-top: 1.75rem; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; min-width: min(100%, 32rem); }
caption { text-align: left; font-weight: 600; padding: 0 0 0.6rem; }
.stay { display: block; position: sticky; left: 0; max-width: calc(100vw - 2rem); white-space: normal; }
th, td { padding: 0.45rem 0; padding-right: 1.75rem; text-align: left; white-space: nowrap; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
thead th.num { white-space: normal; }
th:last-child, td:last-child { padding-right: 0.25rem; }
thead th { color: var(--muted); font-weight: 500; border-bottom-color: var(--muted); vertical-align: bottom; }
.num { text-align: right; }
.group th { font-weight: 600; padding-top: 1.2rem; }
.value { display: inline-block; text-align: right; }
.detail { display: inline-block; text-align: left; margin-left: 0.5em; color: var(--muted); font-size: 0.92em; }
td[title] { color: var(--muted); }
.dot { display: inline-block; width: 0.65em; height: 0.65em; border-radius: 50%; margin-right: 0.55em;
  background: var(--light); }
details { margin-top: 1.5rem; }
summary { cursor: pointer; color: var(--link); }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
.samples section { background: var(--soft); border-radius: 8px; padding: 1rem 1.1rem; }
.samples h3 { margin: 0 0 0.25rem; }
blockquote { margin: 0; padding: 0.75rem 0; font-size: 0.875rem; line-height: 1.55; overflow-wrap: anywhere; }
blockquote + blockquote { border-top: 1px solid var(--line); }
@media (max-width: 40rem) { main { padding: 2rem 1rem 3rem; } h2 { margin-top: 3rem; } }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --muted: #9aa3ad; --line: #2f353c; --paper: #14171a; --soft: #1c2125; --warn: #2e2610;
    --warn-line: #d9a520; --link: #5cb8f0; }
  .dot { background: var(--dark); }
}
@media print { h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
