"""The style of the page of `crashctl report`: a constant, because the page states its hash."""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#647083;--page:#f5f6f8;--card:#fff;
--line:#dfe3e9;--process:#3b6fd4;--kernel:#cf3f3f;--mark:#eef2fb}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ee;--soft:#98a3b3;--page:#12161c;
--card:#1b2129;--line:#303945;--process:#6f9cf0;--kernel:#ef6a6a;--mark:#232c3a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:32px}
h1{margin:0;font-size:28px;overflow-wrap:anywhere}
h2{margin:0 0 8px;font-size:17px}
header p,.note,footer{margin:4px 0 0;color:var(--soft);font-size:13px}
footer{padding:24px}
section{margin:20px 0;padding:18px 20px;background:var(--card);border:1px solid var(--line);
border-radius:10px;overflow-x:auto}
.cards{display:grid;grid-template-columns:repeat(6,minmax(0,1fr));gap:12px;
padding:0;background:none;border:0}
.card{padding:14px 18px;background:var(--card);border:1px solid var(--line);border-radius:10px}
.card b{display:block;font-size:28px;line-height:1.2}
.card span{color:var(--soft);font-size:13px}
.card.bad b{color:var(--kernel)}
#timeline svg{display:block;width:100%;height:auto}
.grid{stroke:var(--line)}
.axis{fill:var(--soft);font-size:12px}
rect.process{fill:var(--process)}
rect.kernel{fill:var(--kernel)}
#timeline .note{display:flex;flex-wrap:wrap;gap:0 18px;margin-bottom:6px}
.legend{white-space:nowrap}
.key{display:inline-block;width:11px;height:11px;margin:0 6px 0 0;border-radius:2px}
.key.process{background:var(--process)}
.key.kernel{background:var(--kernel)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr));
gap:26px 40px}
.columns>div{min-width:0}
table{border-collapse:collapse;width:100%}
.bars{table-layout:fixed}
.bars th{width:46%;font-weight:400;text-align:left;white-space:nowrap;overflow:hidden;
text-overflow:ellipsis;padding:2px 8px 2px 0}
.path{display:flex}
.path span{min-width:0;overflow:hidden;text-overflow:ellipsis}
.path b{flex:none;max-width:100%;font-weight:400;overflow:hidden;text-overflow:ellipsis}
.bars .number{width:60px;padding:2px 10px 2px 0}
.bars svg{display:block;width:100%;height:12px}
.number{text-align:right;font-variant-numeric:tabular-nums}
.list th{text-align:left;white-space:nowrap;font-size:12px;font-weight:600;color:var(--soft)}
.list th,.list td{padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:anywhere}
.list .time,.list .id,.list .state,.list td.number{white-space:nowrap}
.list .what{min-width:210px}
.list .program{min-width:120px}
.list .unit{min-width:110px}
.list tr:last-child td{border-bottom:0}
tr.kernel td{color:var(--kernel)}
a{color:inherit;text-decoration-color:var(--process);text-underline-offset:3px}
code,pre,.stack{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
details{border-top:1px solid var(--line);padding:10px 0}
details:first-of-type{border-top:0}
summary{cursor:pointer;overflow-wrap:anywhere}
summary b{display:inline-block;min-width:24px}
summary span{color:var(--soft)}
details p{margin:8px 0;padding:8px 14px;background:var(--mark);border-radius:6px}
dl{display:grid;grid-template-columns:110px 1fr;gap:2px 14px;margin:10px 0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.stack{margin:10px 0;padding:10px 10px 10px 52px;border:1px solid var(--line);border-radius:6px}
.stack li{overflow-wrap:anywhere}
.stack li::marker{color:var(--soft)}
.stack span,.stack i{color:var(--soft);font-style:normal}
pre{margin:10px 0;padding:12px 14px;border:1px solid var(--line);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere}
:target{outline:2px solid var(--process);outline-offset:6px;border-radius:4px}
@media (max-width:900px){.axis{font-size:18px}
.cards{grid-template-columns:repeat(3,minmax(0,1fr))}
.list thead{display:none}
.list,.list tbody{display:block}
.list tr{display:flex;flex-wrap:wrap;gap:0 14px;padding:10px 0;border-bottom:1px solid var(--line)}
.list tr:last-child{border-bottom:0}
.list td{display:block;border:0;padding:0;font-size:13px;color:var(--soft)}
.list .what,.list .program,.list .unit{min-width:0}
.list .what{order:-1;flex:1 0 100%;font-size:15px;color:var(--ink)}
.list .kernel .what{color:var(--kernel)}
.list td[data-label]::before{content:attr(data-label) " "}}
@media (max-width:600px){header,main,footer{padding-left:12px;padding-right:12px}
section{padding:14px 12px}
.cards{padding:0;grid-template-columns:repeat(2,minmax(0,1fr))}
#timeline svg{overflow:visible;margin-bottom:8px}
.axis{font-size:26px}
.axis.at{transform:translateY(12px)}
.axis.minor{display:none}
.bars th{width:42%}
.bars .number{width:48px}
dl{grid-template-columns:84px 1fr}
.stack{padding-left:40px}}
@media print{body{background:none}section,.card{break-inside:avoid}}
"""
