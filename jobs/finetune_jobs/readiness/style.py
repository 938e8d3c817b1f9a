"""How the page looks: on a wide screen, on a phone of 360 pixels, in the dark and on A4.

Colours are the eight of Okabe and Ito (2008, "Color universal design"), made darker or lighter until text reaches a
contrast of 4.5 to 1 and marks 3 to 1 (WCAG 2.2, 1.4.3 and 1.4.11); no colour says anything that no word says.
"""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--quiet:#57606a;--line:#d8dee4;--raised:#f6f8fa;
--pass:#0a6b3d;--warn:#8a5200;--fail:#b3261e;
--train:#0072b2;--validation:#c46a00;--test:#00805f;--lost:#b1427a;--aside:#6e7781;--mark:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--quiet:#9aa5b1;--line:#30363d;
--raised:#161b22;--pass:#56d39a;--warn:#f0b429;--fail:#ff8a80;
--train:#56b4e9;--validation:#e69f00;--test:#2fc495;--lost:#e58ab8;--aside:#8b949e;--mark:#ff8a80}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 3rem;max-width:56rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.2rem;line-height:1.3;margin:2.5rem 0 .5rem;padding-top:.75rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:0}
p{margin:.4rem 0;max-width:44rem}
.quiet{color:var(--quiet)}
.badge{display:inline-block;width:5.8rem;border:1.5px solid;border-radius:1rem;font-size:.85rem;
font-weight:600;text-align:center;white-space:nowrap}
.badge.Pass{color:var(--pass)}.badge.Warn{color:var(--warn)}.badge.Fail{color:var(--fail)}
.verdict{font-size:1.1rem}
.checks{list-style:none;margin:1rem 0;padding:0}
.checks li{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;align-items:center;padding:.7rem 0;
border-bottom:1px solid var(--line);break-inside:avoid}
.checks div{grid-column:2}
.checks p{margin:0 0 .25rem}
.remedy::before{content:"→ ";font-weight:600}
.remedy{font-weight:500}
table{width:100%;border-collapse:collapse;margin:.75rem 0 1.25rem;font-size:.93rem}
caption{text-align:left;color:var(--quiet);padding-bottom:.3rem}
th,td{padding:.3rem 0 .3rem .75rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums;font-weight:400;overflow-wrap:normal}
td{white-space:nowrap}
thead th{color:var(--quiet);font-size:.85rem;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:0;overflow-wrap:anywhere}
.places th,.places td{text-align:left;overflow-wrap:anywhere;white-space:normal}
.places th:first-child{width:4.5rem;white-space:nowrap}
tr{break-inside:avoid}
thead{display:table-header-group;break-after:avoid}
.bars th:first-child{width:70%}
.bars tbody th div{display:grid;grid-template-columns:minmax(0,15rem) 1fr;gap:0 1rem;align-items:center}
svg{display:block;width:100%;overflow:visible}
.bar{height:.75rem}
.bar .track{fill:var(--raised)}
figure{margin:1rem 0;break-inside:avoid}
figcaption{margin-bottom:.25rem}
.train{fill:var(--train)}.validation{fill:var(--validation)}.test{fill:var(--test)}
.lost{fill:var(--lost)}.aside{fill:var(--aside)}
.axis,.grid{stroke:var(--line);stroke-width:1}
.axis{stroke:var(--quiet)}
.limit{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:5 3}
svg text{fill:var(--quiet);font-size:12px}
svg text.strong{fill:var(--mark)}
.band{fill:var(--train);opacity:.18}
.curve{fill:none;stroke:var(--train);stroke-width:2;vector-effect:non-scaling-stroke}
.beyond{stroke-dasharray:6 4}
.key{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:.5rem 0;padding:0;font-size:.93rem}
.key svg{display:inline-block;width:.8rem;height:.8rem;margin-right:.4rem;vertical-align:-.05rem}
dl{display:grid;grid-template-columns:9rem 1fr;gap:.3rem 1rem;margin:.75rem 0}
dt{color:var(--quiet)}
dd{margin:0}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
@media (max-width:40rem){
body{padding:1rem 1rem 2rem}
dl,.bars tbody th div{grid-template-columns:minmax(0,1fr)}
.checks div{grid-column:1/3}
dl dd{margin-bottom:.4rem}
.bars th:first-child{width:auto}
table{font-size:.87rem}
th,td{padding-left:.5rem}
.long tr{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));padding:.25rem 0;
border-bottom:1px solid var(--line)}
.long th,.long td{padding:.1rem 0;border:0;white-space:normal;overflow-wrap:anywhere}
.long th:first-child{grid-column:1/-1}
}
@page{size:A4;margin:16mm 15mm}
@media print{
html{font-size:10pt}
body{max-width:none;padding:0}
h2{margin-top:1.5rem}
.bars,.plain,dl{break-inside:avoid}
.long{break-inside:auto}
section>p,.key{break-after:avoid;break-inside:avoid}
h2{break-after:avoid}
figcaption,caption{break-after:avoid}
svg,.badge{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
