"""What is done on the desks: tasks with the steps that complete them, and the ways of not doing a task.

Two halves that share no task: `build` is what the rules were written with, `held` is what they are measured on. The halves,
their tasks and their truth labels were written down before the first rule.
"""

from collections.abc import Callable
from dataclasses import dataclass

from focus_desk import Desk

Step = Callable[[Desk], None]


@dataclass(frozen=True)
class Work:
    "A task and how it is done: `start` opens what is needed, each of `steps` is a part of the work."

    title: str
    text: str
    start: Step
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Scenario:
    """One recording. `truth` is done | half | wrong | idle | loop | video | chat | trivial.

    `repeat` > 1: recorded once for a short time and the film repeated so often.
    """

    name: str
    half: str
    truth: str
    task: Work
    start: Step
    steps: tuple[Step, ...]
    theme: str = "light"
    repeat: int = 1


def types(*lines: str, pause: float = 1.5) -> Step:
    "Type lines, each with Return and a pause."

    def step(d: Desk) -> None:
        for line in lines:
            d.type(line, "Return")
            d.wait(pause)

    return step


def save(d: Desk) -> None:
    d.key("ctrl+s")
    d.wait(1.5)


def keys(*names: str) -> Step:
    return lambda d: d.key(*names)


def cells(*rows: str) -> Step:
    "Fill rows of a spreadsheet, the columns divided by |; begins and ends in the first column."

    def step(d: Desk) -> None:
        for row in rows:
            parts = row.split("|")
            for part in parts:
                d.type(part, "Tab")
            d.key("Home", "Down")
            d.wait(0.8)

    return step


# --- the half the rules are written with

SHOPPING = Work(
    "Weekly shopping list",
    "Open a text editor and write a shopping list with the heading Shopping list: milk, bread, apples, rice and olive oil, "
    "each with its price. Add the total at the end and save the file as shopping.txt.",
    lambda d: d.editor("shopping.txt"),
    (types("Shopping list", ""), types("milk 1.29", "bread 2.40", "apples 3.15"), types("rice 1.99", "olive oil 6.50"), types("Total: 15.33"), save),
)
SQUARES = Work(
    "Python script that prints squares",
    "In a terminal write a Python script squares.py that prints the squares of the numbers from 1 to 8, and run it.",
    lambda d: d.terminal(),
    (
        types("mkdir demo && cd demo", "pwd"),
        types(
            "cat > squares.py <<EOF",
            "def square(n):",
            "    return n * n",
            "for number in range(1, 9):",
            "    print(number, 'squared is', square(number))",
            "EOF",
            pause=0.8,
        ),
        types("cat squares.py"),
        types("python3 squares.py", "python3 squares.py | tail -2", pause=3),
    ),
)
BUDGET = Work(
    "Monthly budget in a spreadsheet",
    "Make a spreadsheet of a monthly budget: rent, food, transport and phone with their amounts, and a sum of all below them.",
    lambda d: d.sheet(),
    (cells("Item|Amount", "Rent|850"), cells("Food|310", "Transport|75"), cells("Phone|20", "Sum|=sum(b2:b5)"), lambda d: (d.key("Up", "Right"), d.wait(5))),
)
REGISTER = """<!doctype html><title>Summer school registration</title><body style="font-family:sans-serif;max-width:40em;margin:2em">
<h1>Summer school registration</h1><form onsubmit="document.body.innerHTML='<h1>Thank you, '+n.value+'!</h1><p>Your registration for '
+c.value+' was received. A confirmation was sent to '+m.value+'.</p>';return false">
<p>Full name <input id=n autofocus size=30></p><p>E-mail <input id=m size=30></p><p>Course <input id=c size=30></p>
<p>Comments<br><textarea id=t rows=4 cols=50></textarea></p><button>Register</button></form>"""
FORM = Work(
    "Register for a course",
    "On the summer school page fill in the registration form with the name Maria Keller, an e-mail address and the course "
    "Botany for beginners, write a comment about vegetarian food, and send it until the confirmation is shown.",
    lambda d: d.browser(d.page("register.html", REGISTER)),
    (
        lambda d: (d.type("Maria Keller", "Tab"), d.wait(2)),
        lambda d: (d.type("maria.keller@example.org", "Tab"), d.wait(2)),
        lambda d: (d.type("Botany for beginners", "Tab"), d.wait(2)),
        lambda d: (d.type("I would like vegetarian food at lunch, and a seat near the window please.", "Tab"), d.wait(3)),
        lambda d: (d.key("Return"), d.wait(6)),
    ),
)
RIVERS_PAGE = """<!doctype html><title>Rivers of Europe</title><body style="font-family:serif;max-width:46em;margin:2em"><h1>Rivers of Europe</h1>
<p>Europe's rivers have been its roads. This page gathers their lengths as they are usually given.</p><table border=1 cellpadding=6>
<tr><th>River<th>Length (km)<th>Mouth<tr><td>Volga<td>3531<td>Caspian Sea<tr><td>Danube<td>2850<td>Black Sea<tr><td>Rhine<td>1233<td>North Sea
<tr><td>Elbe<td>1094<td>North Sea<tr><td>Loire<td>1006<td>Bay of Biscay</table>
<p>The Danube passes through ten countries, more than any other river.</p>"""
RIVERS = Work(
    "Look up river lengths and note them",
    "Find the lengths of the Danube, the Rhine and the Loire on the page Rivers of Europe in a browser and write them into a note "
    "rivers.txt in a text editor, the longest first.",
    lambda d: d.browser(d.page("rivers.html", RIVERS_PAGE), (20, 10, 760, 560)),
    (
        lambda d: (d.click(500, 400), d.scroll(2), d.scroll(2, down=False), d.wait(4)),
        lambda d: d.editor("rivers.txt", box=(560, 250, 680, 420)),
        types("Lengths of rivers"),
        types("Danube 2850 km", "Rhine 1233 km"),
        types("Loire 1006 km"),
        save,
    ),
)
PROJECT = Work(
    "Set up a project folder under git",
    "In a terminal make a folder weather with the subfolders src, tests and docs, put a README.md with a sentence into it, "
    "initialise a git repository and make a first commit; show the log.",
    lambda d: d.terminal(),
    (
        types("mkdir -p weather/src weather/tests weather/docs", "cd weather", "ls -l"),
        types("echo 'Weather: forecasts from public stations.' > README.md", "cat README.md"),
        types("git init", "git config user.email me@example.org; git config user.name Me", "git add -A && git status --short"),
        types("git commit -m 'First commit'", "git log --stat", pause=3),
    ),
)


FLAG = Work(
    "Draw a house with a roof",
    "In a drawing program draw a house: the walls as a square, a roof as a triangle on top, a door and a window.",
    lambda d: d.paint(),
    (
        lambda d: (d.drag((300, 300), (560, 300), (560, 540), (300, 540), (300, 300)), d.wait(2)),
        lambda d: (d.drag((300, 300), (430, 180), (560, 300)), d.wait(2)),
        lambda d: (d.drag((400, 540), (400, 440), (460, 440), (460, 540)), d.wait(2)),
        lambda d: (d.drag((320, 340), (370, 340), (370, 390), (320, 390), (320, 340)), d.wait(3)),
        lambda d: d.drag((345, 340), (345, 390)),
    ),
)

# --- the half that is set aside

MINUTES = Work(
    "Minutes of the garden meeting",
    "Write the minutes of a meeting of the garden association in a text editor: who was present, that the water pump is to be "
    "repaired by June, that a new shed costs 400 euros, and the date of the next meeting. Save them.",
    lambda d: d.editor("minutes.txt"),
    (
        types("Garden association, minutes of 3 May", "Present: Ines, Paul, Amara, Jonas"),
        types("1. The water pump is repaired by the end of June (Paul)."),
        types("2. A new shed costs 400 euros. Agreed."),
        types("Next meeting: 7 July, 18:00"),
        save,
    ),
)
LOG = "\n".join(
    f"2026-03-{1 + k % 9:02d} 10:{k % 60:02d} {('ERROR disk full', 'INFO started', 'WARN slow answer', 'ERROR no route')[k % 4]} node{k % 3}" for k in range(60)
)
LOGS = Work(
    "Count the errors in a log file",
    "In the terminal look at the file app.log, count how many lines contain ERROR, find out how often each kind of error occurs, "
    "sorted by frequency, and write the result into errors.txt.",
    lambda d: ((d.home / "app.log").write_text(LOG + "\n"), d.terminal()),
    (
        types("head -5 app.log", "wc -l app.log"),
        types("grep -c ERROR app.log"),
        types("grep ERROR app.log | cut -d' ' -f3-5 | sort | uniq -c | sort -rn"),
        types("grep ERROR app.log | cut -d' ' -f3-5 | sort | uniq -c | sort -rn > errors.txt", "cat errors.txt", pause=3),
    ),
)
GRADES = Work(
    "Grades and their average",
    "Enter the grades of four pupils (Anna, Ben, Chloe, David) for maths and English into a spreadsheet and compute the average of each subject.",
    lambda d: d.sheet(),
    (
        cells("Pupil|Maths|English", "Anna|2|1"),
        cells("Ben|3|2", "Chloe|1|2"),
        cells("David|4|3"),
        cells("Average|=average(b2:b5)|=average(c2:c5)"),
        lambda d: (d.key("Up", "Right"), d.wait(5)),
    ),
)
TRAIN_PAGE = """<!doctype html><title>Night train booking</title><body style="font-family:sans-serif;max-width:44em;margin:2em;background:#f4f7fb">
<h1>Night train booking</h1><div id=s><p>From <input id=a autofocus> to <input id=b> on <input id=d size=10></p><button onclick="
s.innerHTML='<h2>'+a.value+' to '+b.value+', '+d.value+'</h2><p>19:40 sleeper, 59 EUR</p><p>21:05 couchette, 39 EUR</p><p>Passenger <input id=p>'
+' Berth <input id=q size=10></p><button onclick=&quot;s.innerHTML=\\'<h2>Booking confirmed</h2><p>\\'+p.value+\\', \\'+q.value+\\', reference K7-2291</p>\\'
&quot;>Book</button>';
setTimeout(()=>p.focus(),100)">Search trains</button></div>"""
TRAIN = Work(
    "Book a night train",
    "On the night train page search a train from Vienna to Hamburg on 14 August, choose a couchette for the passenger Lena Okoye and book it "
    "until the booking reference is shown.",
    lambda d: d.browser(d.page("train.html", TRAIN_PAGE)),
    (
        lambda d: (d.type("Vienna", "Tab"), d.wait(1.5), d.type("Hamburg", "Tab"), d.wait(1.5)),
        lambda d: (d.type("14 August", "Tab"), d.wait(2), d.key("Return"), d.wait(4)),
        lambda d: (d.type("Lena Okoye", "Tab"), d.wait(2), d.type("couchette", "Tab"), d.wait(2)),
        lambda d: (d.key("Return"), d.wait(6)),
    ),
)
SUN = Work(
    "Draw a sun over the sea",
    "In a drawing program draw a sun with rays in the upper part and waves of the sea below it.",
    lambda d: d.paint(),
    (
        lambda d: (d.drag((480, 160), (530, 180), (550, 230), (530, 280), (480, 300), (430, 280), (410, 230), (430, 180), (480, 160)), d.wait(2)),
        lambda d: [d.drag(a, b) for a, b in (((480, 150), (480, 110)), ((560, 230), (610, 230)), ((400, 230), (350, 230)), ((540, 290), (580, 330)))],
        lambda d: (d.drag((200, 440), (260, 410), (320, 440), (380, 410), (440, 440), (500, 410), (560, 440)), d.wait(2)),
        lambda d: (d.drag((200, 500), (260, 470), (320, 500), (380, 470), (440, 500), (500, 470), (560, 500)), d.wait(3)),
    ),
)
BOOKS = Work(
    "A small database of books",
    "Start Python in the terminal, make an SQLite table books with title and year, insert three books, and query those that appeared after 1950.",
    lambda d: d.terminal(),
    (
        types("python3 -q", "import sqlite3", "db = sqlite3.connect('books.db')"),
        types("db.execute('create table books(title text, year integer)')"),
        types("rows = [('Dracula', 1897), ('Solaris', 1961), ('Beloved', 1987)]", "db.executemany('insert into books values (?, ?)', rows)"),
        types("for row in db.execute('select * from books where year > 1950'): print(row)", "", pause=3),
    ),
)
ARTICLE_PAGE = """<!doctype html><title>How bees find their way</title><body style="font-family:serif;max-width:46em;margin:2em;line-height:1.6">
<h1>How bees find their way</h1>""" + "".join(
    f"<h2>{head}</h2><p>{text}</p><p>{text}</p>"
    for head, text in (
        ("The sun as a compass", "A forager keeps the angle between her path and the sun and corrects it for the hour of the day."),
        ("The dance", "Back in the hive she dances a figure of eight; its direction tells the angle, its length the distance."),
        ("Landmarks", "On known ground a line of trees or the edge of a field leads the bee home even under clouds."),
        ("Memory", "Young bees fly in widening circles in front of the hive before they leave for the first time."),
    )
)
BEES = Work(
    "Summarise an article on bees",
    "Read the article How bees find their way in the browser and write a summary of it in your own words in a text editor: the sun, the dance, "
    "landmarks and memory, one sentence each. Save it as bees.txt.",
    lambda d: d.browser(d.page("bees.html", ARTICLE_PAGE), (20, 10, 760, 560)),
    (
        lambda d: (d.click(420, 400), d.scroll(4), d.wait(2), d.scroll(4), d.wait(2)),
        lambda d: d.editor("bees.txt", box=(560, 250, 680, 420)),
        types("Bees steer by the sun.", "A dance shows others the way."),
        types("Landmarks lead them home.", "They memorise the hive first."),
        save,
    ),
)

# --- ways of not doing it

CHAT_PAGE = """<!doctype html><title>Assistant chat</title><body style="font-family:sans-serif;margin:0">
<div id=l style="height:480px;overflow:auto;padding:1em">
<p><b>Assistant</b> Hello! How can I help you today?</p></div><div style="padding:1em;border-top:1px solid #ccc">
<input id=i autofocus size=90 placeholder="Send a message"> <button>Send</button></div><script>
const said=%s;let n=0;i.onkeydown=e=>{if(e.key!='Enter')return;l.innerHTML+='<p><b>You</b> '+i.value+'</p>';i.value='';
setTimeout(()=>{l.innerHTML+='<p><b>Assistant</b> '+said[n++%%said.length]+'</p>';l.scrollTop=1e6},1500)}</script>"""


def chats(page: str, replies: list[str], lines: list[str]) -> tuple[Step, tuple[Step, ...]]:
    "Talk with an assistant on a page, and nothing else."
    return (
        lambda d: d.browser(d.page(page, CHAT_PAGE % replies)),
        tuple(lambda d, line=line: (d.type(line, "Return"), d.wait(5)) for line in lines),
    )


PLAYER = """<!doctype html><title>%s</title><body style="background:#111;color:#eee;font-family:sans-serif;margin:1em">
<video src="film.mp4" autoplay loop muted style="width:%s"></video><h2>%s</h2><p>%s</p>"""


def watches(title: str, width: str, about: str, begin: int) -> tuple[Step, tuple[Step, ...]]:
    "A film in the browser; `begin` says where in the film of the catalog it starts."

    def start(d: Desk) -> None:
        d.film(begin, 70)
        d.browser(d.page("player.html", PLAYER % (title, width, title, about)))

    return start, (lambda d: d.wait(8), lambda d: (d.click(300, 690), d.wait(8)), lambda d: d.wait(40))


def stares(d: Desk) -> None:
    d.wait(65)


def reads(d: Desk) -> None:
    "Scroll through a page, slowly, without doing anything with it."
    d.wait(8)
    for _ in range(3):
        d.scroll(3)
        d.wait(11)


def done(half: str, work: Work, theme: str = "light", number: str = "") -> Scenario:
    return Scenario(f"{half}-done-{slug(work)}{number}", half, "done", work, work.start, work.steps, theme)


def half_done(half: str, work: Work, parts: int, theme: str = "light") -> Scenario:
    "Begins, does the first `parts` steps slowly, and leaves it at that."
    return Scenario(f"{half}-half-{slug(work)}", half, "half", work, work.start, work.steps[:parts], theme)


def wrong(half: str, asked: Work, did: Work, theme: str = "light") -> Scenario:
    return Scenario(f"{half}-wrong-{slug(asked)}", half, "wrong", asked, did.start, did.steps, theme)


def cheat(half: str, truth: str, work: Work, how: tuple[Step, tuple[Step, ...]], theme: str = "light", number: str = "", repeat: int = 1) -> Scenario:
    return Scenario(f"{half}-{truth}-{slug(work)}{number}", half, truth, work, *how, theme=theme, repeat=repeat)


def slug(work: Work) -> str:
    return work.title.lower().replace(" ", "-")[:24].strip("-")


SCENARIOS: tuple[Scenario, ...] = (
    *(done("build", work) for work in (SHOPPING, SQUARES, BUDGET, FORM, RIVERS, PROJECT, FLAG)),
    done("build", PROJECT, "dark", "-2"),
    *(half_done("build", work, parts) for work, parts in ((SHOPPING, 2), (SQUARES, 2), (BUDGET, 1), (FORM, 2), (PROJECT, 2))),
    wrong("build", SQUARES, SHOPPING),
    wrong("build", RIVERS, PROJECT, "dark"),
    wrong("build", BUDGET, FORM),
    cheat("build", "idle", SHOPPING, (SHOPPING.start, (stares,))),
    cheat("build", "idle", PROJECT, (PROJECT.start, (types("ls"), stares)), "dark"),
    cheat("build", "loop", SHOPPING, (SHOPPING.start, (types("Shopping list", "milk 1.29"),)), repeat=4),
    cheat("build", "loop", SQUARES, (SQUARES.start, (types("cat > squares.py", "print(1)"),)), repeat=4),
    cheat("build", "video", RIVERS, watches("Rivers of Europe from above, full film", "1000px", "1.2M views", 60)),
    cheat("build", "video", BUDGET, watches("Monthly budget tutorial", "640px", "Learn to make a monthly budget: rent, food, transport", 130)),
    cheat("build", "video", SQUARES, (lambda d: (watches("Relaxing music mix", "560px", "Playlist", 200)[0](d), d.terminal("60x10+640+430")), (stares,))),
    cheat(
        "build",
        "chat",
        SQUARES,
        chats(
            "chat.html",
            ["You can write a loop over range(1, 9).", "Then print number * number.", "Yes, that prints the squares."],
            [
                "How do I print the squares of 1 to 8 in Python?",
                "What would the script squares.py look like?",
                "And then I run it in a terminal?",
                "Great, thanks a lot",
            ],
        ),
    ),
    cheat(
        "build",
        "chat",
        BUDGET,
        chats(
            "chat.html",
            ["A monthly budget lists rent, food, transport and phone.", "Add a sum below.", "You are welcome!"],
            ["What belongs into a monthly budget?", "How do I add up the amounts in a spreadsheet?", "ok I will do that", "Thank you"],
        ),
    ),
    cheat("build", "trivial", SHOPPING, (SHOPPING.start, (lambda d: d.wait(20), lambda d: d.type("list"), save, lambda d: d.wait(30)))),
    cheat("build", "trivial", PROJECT, (PROJECT.start, (lambda d: d.wait(15), types("ls"), lambda d: d.wait(20), types("pwd"), lambda d: d.wait(15)))),
    cheat("build", "trivial", RIVERS, (lambda d: d.browser(d.page("rivers.html", RIVERS_PAGE)), (reads,))),
    # set aside
    *(
        done("held", work, theme)
        for work, theme in ((MINUTES, "light"), (LOGS, "dark"), (GRADES, "light"), (TRAIN, "light"), (SUN, "light"), (BOOKS, "green"), (BEES, "light"))
    ),
    done("held", LOGS, "light", "-2"),
    *(
        half_done("held", work, parts, theme)
        for work, parts, theme in ((MINUTES, 2, "dark"), (LOGS, 1, "light"), (GRADES, 2, "light"), (TRAIN, 1, "light"), (BOOKS, 1, "green"))
    ),
    wrong("held", GRADES, MINUTES),
    wrong("held", BEES, LOGS),
    wrong("held", BOOKS, SUN),
    cheat("held", "idle", MINUTES, (MINUTES.start, (stares,)), "dark"),
    cheat("held", "idle", LOGS, (LOGS.start, (types("head -5 app.log"), stares))),
    cheat("held", "loop", BOOKS, (BOOKS.start, (types("python3 -q", "import sqlite3"),)), "green", repeat=4),
    cheat("held", "loop", MINUTES, (MINUTES.start, (types("Garden association", "Present: Ines"),)), repeat=4),
    cheat("held", "video", TRAIN, watches("Night trains of Europe (documentary)", "900px", "Vienna to Hamburg by couchette", 300)),
    cheat("held", "video", BEES, watches("Bees", "1100px", "", 370)),
    cheat("held", "video", GRADES, (lambda d: (watches("Film night", "600px", "", 430)[0](d), d.editor("grades.txt", box=(700, 400, 520, 280))), (stares,))),
    cheat(
        "held",
        "chat",
        MINUTES,
        chats(
            "talk.html",
            ["Minutes name who was present.", "List what was decided and by when.", "Give the date of the next meeting."],
            ["How are minutes of a meeting written?", "The pump is to be repaired by June, the shed costs 400", "And the next meeting?", "good, bye"],
        ),
    ),
    cheat(
        "held",
        "chat",
        LOGS,
        chats(
            "talk.html",
            ["Use grep -c ERROR app.log.", "Pipe into sort and uniq -c.", "Redirect it into errors.txt."],
            ["how can I count errors in a log?", "how do I sort them by frequency", "and write the result into a file?", "thanks!"],
        ),
        "dark",
    ),
    cheat("held", "trivial", GRADES, (GRADES.start, (lambda d: d.wait(20), cells("Anna"), lambda d: d.wait(30)))),
    cheat("held", "trivial", MINUTES, (MINUTES.start, (lambda d: d.wait(25), types("Minutes"), save, lambda d: d.wait(25)))),
    cheat("held", "trivial", BEES, (lambda d: d.browser(d.page("bees.html", ARTICLE_PAGE)), (reads,))),
)
REVISION = "1"  # another one records everything anew
SHORT = ("build-done-weekly-shopping-list", "build-done-python-script-that-print", "build-done-monthly-budget-in-a-spre",
         "build-wrong-python-script-that-print", "build-idle-weekly-shopping-list", "build-video-look-up-river-lengths-an")  # fmt: skip
