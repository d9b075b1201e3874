"""The style sheet of the report: light and dark by what the reader's system prefers."""

__all__ = ["STYLE"]

# Okabe and Ito's colours, which people who see few colours can tell apart, and lighter ones for the dark.
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#555555")
_DARK = ("#5cb3e8", "#ff8c42", "#3fd1a5", "#e8a0c6", "#e6c24a", "#9bd5f5", "#b79ad9", "#b0b0b0")

STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1a1d21;--muted:#5d6670;--grid:#e3e6ea;--panel:#f6f7f9;"
    + "".join(f"--c{i}:{colour};" for i, colour in enumerate(_LIGHT))
    + "}@media (prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e8eb;--muted:#98a2ad;--grid:#2c323a;"
    "--panel:#1d2127;" + "".join(f"--c{i}:{colour};" for i, colour in enumerate(_DARK)) + "}}"
    "body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}"
    "main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}"
    "h1{font-size:26px;margin:0 0 12px}h2{font-size:19px;margin:36px 0 12px}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0;font-size:14px}"
    "dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}"
    ".warnings{border-left:4px solid var(--c1);background:var(--panel);margin:20px 0;padding:8px 12px 8px 32px}"
    ".notes{color:var(--muted);font-size:13px;padding-left:18px;overflow-wrap:anywhere}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;width:100%}"
    "th{text-align:left;color:var(--muted);font-weight:600;vertical-align:bottom}"
    "th,td{padding:6px 10px 6px 0;border-bottom:1px solid var(--grid)}"
    "td{vertical-align:top;font-variant-numeric:tabular-nums}small{color:var(--muted)}"
    "figure{margin:16px 0}figcaption{font-size:13px;color:var(--muted);overflow-wrap:anywhere}"
    ".grid-of-plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:8px 24px}"
    "svg{width:100%;height:auto;display:block}svg text{fill:var(--muted);font-size:11px}"
    "svg text.label{fill:var(--ink);font-size:12px}.mid{text-anchor:middle}.end{text-anchor:end}"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--muted)}.whisker{stroke:var(--ink);fill:none;stroke-width:1.5}"
    ".line{fill:none;stroke-width:2}.mark{stroke:var(--ink);stroke-dasharray:4 3}.m1{opacity:.6}.m2{opacity:.35}"
    ".key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;padding:0 0 0 10px;font-size:13px}"
    ".key li{overflow-wrap:anywhere}.key .swatch{display:inline-block;width:12px;height:12px;margin-right:6px;"
    "vertical-align:-1px}"
    + "".join(f".fill.c{i}{{fill:var(--c{i})}}.line.c{i}{{stroke:var(--c{i})}}" for i in range(len(_LIGHT)))
)
"""CSS, with the classes that `_plots` and `_html` write."""
