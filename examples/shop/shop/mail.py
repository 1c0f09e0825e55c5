"""Mails, sent once each."""

import smtplib
from email.message import EmailMessage

from flask import current_app

from .extensions import db
from .models import Mail


def send_once(key: str, to: str, subject: str, text: str) -> None:
    """Send a mail, unless one with this key was sent: a task may run twice.

    A worker that is killed between the mail and the commit sends it again, with the same Message-ID.
    """
    if db.session.get(Mail, key):
        return
    sender = current_app.config["MAIL_DEFAULT_SENDER"]
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Message-ID"] = f"<{key}@{sender.partition('@')[2]}>"
    message.set_content(text)
    if server := current_app.config["MAIL_SERVER"]:
        with smtplib.SMTP(server, current_app.config["MAIL_PORT"], timeout=10) as smtp:
            smtp.send_message(message)
    else:
        current_app.logger.info("mail to %s: %s\n%s", to, subject, text)
    db.session.add(Mail(key=key))
    db.session.commit()
