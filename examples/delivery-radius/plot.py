"""Two panels over time, as SVG: calls a second, and how far each trigger is."""

from html import escape

WIDTH, LEFT, RIGHT, HIGH, TOP, GAP = 860, 70, 30, 190, 88, 60
COLOURS = ["#2b6cb0", "#d69e2e", "#c53030"]
FONT = "font-family='system-ui, sans-serif'"


def draw(path, lines, triggers, shops, events):
    seconds = lines[-1]["seconds"]
    rates = rates_of(lines)
    height = TOP + 2 * HIGH + GAP + 50
    out = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        text(16, 28, f"{shops:,} shops, three triggers at once", size=17, weight=600),
        text(16, 48, f"{shops * len(triggers):,} calls in {seconds:.0f} s", colour="#666666"),
    ]
    out += panel(TOP, "answers a second", seconds, round_up(max(rate for _, rate in rates)), [(rates, "#2f855a", "")], events)
    shares = [
        ([(0, 0)] + [(line["seconds"], 100 * line["done"][n] / shops) for line in lines], COLOURS[n], name)
        for n, name in enumerate(triggers)
    ]
    out += panel(TOP + HIGH + GAP, "shops answered, per cent", seconds, 100, shares, events)
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n")


def rates_of(lines, window=1.0):
    """Of every second, so that a plot of minutes stays readable."""
    found, at, done = [(0, 0)], 0, 0
    for line in lines:
        if line["seconds"] - at >= window or line is lines[-1]:
            total = sum(line["done"])
            found.append((line["seconds"], (total - done) / max(line["seconds"] - at, 0.001)))
            at, done = line["seconds"], total
    return found


def round_up(value):
    """The next number that quarters well."""
    step = 4
    while step * 10 < value:
        step *= 10
    return next(step * times for times in (1, 2, 3, 4, 5, 6, 8, 10) if step * times >= value)


def text(x, y, words, size=12, weight=400, colour="#1a1a1a", anchor="start"):
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' font-weight='{weight}'"
        f" fill='{colour}' text-anchor='{anchor}'>{escape(words)}</text>"
    )


def panel(top, heading, seconds, high, curves, events):
    wide, bottom = WIDTH - LEFT - RIGHT, top + HIGH
    out = [text(LEFT, top - 8, heading, size=13, weight=600, colour="#333333")]
    for part in range(5):
        y = bottom - HIGH * part / 4
        out.append(f"<path d='M{LEFT} {y:.1f}h{wide}' stroke='#e2e8f0' fill='none'/>")
        out.append(text(LEFT - 8, y + 4, f"{high * part / 4:,.0f}", anchor="end", colour="#666666"))
        out.append(text(LEFT + wide * part / 4, bottom + 18, f"{seconds * part / 4:.0f} s", anchor="middle", colour="#666666"))
    for n, (at, words) in enumerate(events):
        x = LEFT + wide * at / seconds
        out.append(f"<path d='M{x:.1f} {top}V{bottom}' stroke='#718096' stroke-dasharray='4 3' fill='none'/>")
        out.append(text(x + 4, top + 14 + 15 * n, words, size=11, colour="#4a5568"))
    for n, (points, colour, name) in enumerate(curves):
        places = " ".join(f"{LEFT + wide * x / seconds:.1f},{bottom - HIGH * y / high:.1f}" for x, y in points)
        out.append(f"<polyline points='{places}' stroke='{colour}' stroke-width='1.8' fill='none'/>")
        if name:
            out.append(f"<rect x='{LEFT + 150 * n + 220}' y='{top - 17}' width='10' height='10' fill='{colour}'/>")
            out.append(text(LEFT + 150 * n + 235, top - 8, name))
    return out
