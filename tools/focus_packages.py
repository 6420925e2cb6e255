"What the virtual desks need, by program and by Debian package."

PROGRAMS = ("Xvfb", "openbox", "xdotool", "xterm", "mousepad", "gnumeric", "mtpaint", "chromium")
PACKAGES = "xvfb openbox xdotool xterm mousepad gnumeric mtpaint chromium fonts-dejavu"
