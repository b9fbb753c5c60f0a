"""Bars beside each other, one panel for each thing measured, as SVG."""

from html import escape

LABEL, BAR, VALUE, ROW, HEAD, GAP = 250, 330, 170, 26, 34, 18
FONT = "font-family='system-ui, sans-serif'"


def panels(path, title, note, shown):
    """`shown`: (heading, [(label, median, low, high, colour)], how a number is written)."""
    width = LABEL + BAR + VALUE
    height = 64 + sum(HEAD + ROW * len(bars) + GAP for _, bars, _ in shown)
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
        f"<text x='16' y='28' {FONT} font-size='17' font-weight='600' fill='#1a1a1a'>{escape(title)}</text>",
        f"<text x='16' y='48' {FONT} font-size='12' fill='#666666'>{escape(note)}</text>",
    ]
    top = 64
    for heading, bars, form in shown:
        out.append(f"<text x='16' y='{top + 20}' {FONT} font-size='13' font-weight='600' fill='#333333'>{escape(heading)}</text>")
        top += HEAD
        scale = BAR / (max((high for _, _, _, high, _ in bars), default=0) or 1)
        for label, median, low, high, colour in bars:
            middle = top + ROW / 2
            out.append(f"<text x='{LABEL - 10}' y='{middle + 4:.1f}' {FONT} font-size='12' text-anchor='end' fill='#333333'>{escape(label)}</text>")
            out.append(f"<rect x='{LABEL}' y='{top + 4}' width='{max(median * scale, 1):.1f}' height='{ROW - 8}' fill='{colour}'/>")
            left, right = LABEL + low * scale, LABEL + high * scale
            out.append(f"<path d='M{left:.1f} {middle:.1f}H{right:.1f}M{left:.1f} {middle - 4:.1f}v8M{right:.1f} {middle - 4:.1f}v8' stroke='#222222' fill='none'/>")
            out.append(f"<text x='{max(right, LABEL + median * scale) + 8:.1f}' y='{middle + 4:.1f}' {FONT} font-size='12' fill='#333333'>{escape(form(median))}</text>")
            top += ROW
        top += GAP
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n")
