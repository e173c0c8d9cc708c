"""How the page looks, in light and in dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --text: #1d2429; --soft: #5b6770; --line: #dde2e6; --page: #ffffff;
  --panel: #f5f7f8; --mark: #e4f1e9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e3e7ea; --soft: #9ba7b0; --line: #343c43; --page: #15191c;
    --panel: #1c2226; --mark: #1d3a2b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 0 0 .5rem; }
section { margin-top: 2.6rem; border-top: 1px solid var(--line); padding-top: 1.4rem; }
.sub, .lead, figcaption { color: var(--soft); }
.sub { margin: 0; }
.lead { margin: 0 0 1rem; max-width: 75ch; }
.summary {
  background: var(--panel); border-left: 4px solid #22a079; border-radius: 4px;
  padding: .9rem 1.1rem; margin: 1.4rem 0 0; font-size: 1.06rem;
}
.scroll { overflow-x: auto; }
table {
  border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  white-space: nowrap;
}
th, td { padding: .42rem .7rem; text-align: right;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: .88rem; cursor: help; }
th:first-child {
  text-align: left; position: sticky; left: 0; background: var(--page); cursor: auto;
}
tbody th { font-weight: 600; }
.baseline { color: var(--soft); }
.baseline th { font-weight: 400; }
td b { background: var(--mark); color: var(--text); padding: .1rem .35rem;
  border-radius: 4px; margin-right: -.35rem; }
i { display: inline-block; width: .7em; height: .7em; border-radius: 2px;
  margin-right: .5em; }
ul { color: var(--soft); font-size: .92rem; padding-left: 1.2rem; }
details { color: var(--soft); font-size: .92rem; }
summary { cursor: pointer; }
.grid { display: grid; gap: 1rem; align-items: start; }
.small { grid-template-columns: repeat(auto-fill, minmax(min(15.5rem, 100%), 1fr)); }
.medium { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
.wide figure { min-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .8rem;
  font-size: .9rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; }
.texts dl, .texts article {
  background: var(--panel); border-radius: 4px; padding: .7rem .9rem; margin: 0 0 .8rem;
}
.texts dl { font-size: .92rem; }
.texts dt { font-weight: 400; color: var(--soft); }
.texts > dl > dt { min-width: 9.5rem; }
.texts article > dl { padding: 0; margin: 0; gap: .3rem .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .45rem 1.2rem;
  margin: 0; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 560px) {
  dl { grid-template-columns: 1fr; gap: .1rem; }
  dd { margin-bottom: .6rem; }
}
@media print { section { break-inside: avoid; } }
"""
