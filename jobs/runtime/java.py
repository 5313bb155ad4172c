"""The Java that Spark starts: where it is, and whether it is one that Spark runs on."""

import os
import re
import shutil
import subprocess

MAJORS = (17, 21)
PACKAGES = "openjdk-17-jre-headless (Debian, Ubuntu), java-17-openjdk (Fedora) or openjdk@17 (Homebrew)"
REMEDY = f"Spark needs Java 17 or 21: install {PACKAGES}"


def program() -> tuple[str | None, str]:
    """The program that Spark would start, None if there is none; and where it was looked for, in words."""
    if home := os.environ.get("JAVA_HOME"):
        return shutil.which(f"{home}/bin/java"), f"at JAVA_HOME={home}"
    return shutil.which("java"), "on the PATH"


def look() -> tuple[str, bool]:
    """What is found, in words, and whether Spark runs on it."""
    found, where = program()
    if found is None:
        return f"none {where}", False
    output = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    match = re.search(r'version "(\d+)(?:\.(\d+))?', output)
    major = int(match[2] if match and match[1] == "1" else match[1]) if match else 0
    return f"{major or 'unknown version'} at {found}", major in MAJORS
