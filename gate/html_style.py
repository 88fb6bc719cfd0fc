"""The style sheet of an HTML report: light and dark by the reader's system, from 320 pixels up, printable."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --ink: #1d2125; --soft: #626b74; --line: #dfe2e5; --track: #eef0f2;
  --old: #7a8793; --new: #2b62c9; --pass: #1a7f4b; --regress: #c0362c; --inconclusive: #9a6700; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171a; --card: #1c2024; --ink: #e7eaec; --soft: #9aa4ad; --line: #30363c; --track: #272c31;
  --old: #98a4af; --new: #7fa8ff; --pass: #52c58a; --regress: #ff7b70; --inconclusive: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 56px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
p { margin: 0 0 10px; } .soft, .unit, small { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin-top: 18px; }
header { border-left: 6px solid var(--tone); padding-left: 16px; }
.pass { --tone: var(--pass); } .regress { --tone: var(--regress); } .inconclusive { --tone: var(--inconclusive); }
.reported { --tone: var(--soft); } .old { --tone: var(--old); } .new { --tone: var(--new); }
small { font-size: 13px; }
.word { color: var(--tone); font-weight: 650; }
ul { margin: 12px 0 0; padding-left: 18px; } li { margin: 3px 0; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: minmax(150px, 23%) 1fr minmax(190px, 30%); gap: 4px 16px;
  align-items: center; padding: 7px 0; border-top: 1px solid var(--line); }
.row:first-of-type { border-top: 0; } .row.tight { border-top: 0; padding: 1px 0; }
.name { overflow-wrap: anywhere; } .figure { font-variant-numeric: tabular-nums; }
.track { position: relative; height: 22px; background: var(--track); border-radius: 5px; overflow: hidden; }
.track i { position: absolute; }
.span { top: 9px; height: 4px; min-width: 2px; background: var(--tone, var(--new)); opacity: .45; border-radius: 2px; }
.dot { top: 6px; width: 10px; height: 10px; margin-left: -5px; border-radius: 50%;
  background: var(--tone, var(--new)); }
.one { width: 5px; height: 5px; margin: -2px 0 0 -2px; border-radius: 50%; background: var(--tone, var(--new));
  opacity: .6; }
.tall { height: 46px; }
.bin { bottom: 0; background: var(--tone, var(--new)); opacity: .55; }
.quantile { bottom: 0; width: 0; height: 62%; border-left: 2px solid var(--ink); opacity: .75; }
.quantile.first { height: 100%; opacity: 1; }
.limit { top: 0; bottom: 0; width: 0; border-left: 2px dashed var(--ink); opacity: .55; }
.bar { height: 14px; margin-top: 4px; border-radius: 3px; background: var(--tone, var(--new)); min-width: 2px; }
.axis { position: relative; height: 18px; grid-column: 2; }
.axis i { position: absolute; transform: translateX(-50%); font-style: normal; font-size: 12px; color: var(--soft);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.unit { font-size: 12px; grid-column: 3; }
.plots { display: grid; gap: 28px 32px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: 2px; }
figure .axis, figure .plot { margin-left: 52px; margin-right: 8px; } figure .unit { margin-left: 52px; }
.unit.up { margin-bottom: 6px; }
.plot { position: relative; background: var(--track); border-radius: 5px; } .plot i { position: absolute; }
.grid { left: 0; right: 0; border-top: 1px solid var(--line); }
.grid.up { top: 0; bottom: 0; right: auto; border-top: 0; border-left: 1px solid var(--line); }
.tick { right: calc(100% + 8px); transform: translateY(50%); font-style: normal; font-size: 12px; color: var(--soft);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.best { --tone: var(--new); } .beaten { --tone: var(--old); }
.step { height: 0; border-top: 2px dashed var(--new); opacity: .6; margin-bottom: -1px; }
.step.up { width: 0; border-top: 0; border-left: 2px dashed var(--new); margin: 0 0 0 -1px; height: auto; }
.error { height: 2px; margin-bottom: -1px; background: var(--tone); opacity: .55; }
.error.up { height: auto; width: 2px; margin: 0 0 0 -1px; }
.point { width: 12px; height: 12px; margin: 0 0 -6px -6px; border-radius: 50%; border: 2px solid var(--tone);
  background: var(--card); } .point.best { background: var(--tone); }
.lead { width: 10px; border: 0 solid var(--soft); border-top-width: 1px; opacity: .6; }
.lead.left { border-left-width: 1px; } .lead.right { border-right-width: 1px; }
.lead.down { border-top-width: 0; border-bottom-width: 1px; }
.label { position: absolute; height: 18px; line-height: 18px; font-size: 13px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; text-shadow: 0 0 2px var(--track), 0 0 3px var(--track), 0 0 4px var(--track); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } th, td { text-align: left; padding: 5px 14px 5px 0; border-top: 1px solid var(--line);
  vertical-align: top; } tr:first-child th, tr:first-child td { border-top: 0; }
th { font-weight: 600; color: var(--soft); } .facts td { overflow-wrap: anywhere; } .figures { white-space: nowrap; }
.figures td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8em; }
@media (max-width: 640px) { main { padding: 20px 12px 40px; } section { padding: 14px; } h1 { font-size: 21px; }
  .row { grid-template-columns: minmax(0, 1fr); padding: 9px 0; } .axis, .unit { grid-column: 1; }
  .row.tight { padding: 5px 0; } .row.foot { padding-top: 0; } .row > .track { order: 1; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""
