from flask import Flask, flash, redirect, render_template_string, request
from flask_backend import Backend, BackendCommand
from flask_script import Manager, Server

app = Flask(__name__)
app.config.from_object('settings')

backend = Backend(app)
manager = Manager(app)


TEMPLATE = """\
<html>
<body>
{% for message in get_flashed_messages() %}
<p>{{ message }}</p>
{% endfor %}
<p>Click on the "SEND" button to schedule a task.</p>
<form action="" method="POST">
<input type="submit" value="SEND"/>
</form>
</body>
</html>
"""


@app.route('/', methods={'GET', 'POST'})
def index():
    if request.method == 'POST':
        hello('world')
        flash('Backend task scheduled, check logs.')
        return redirect(request.url)
    return render_template_string(TEMPLATE)


@backend.before_first_task('com.example/default')
def initialize_backend():
    app.logger.info('Initializing backend.')


@backend.task('com.example/default')
def hello(target):
    app.logger.info('Hello, %s!', target)
    message = {'salutation': 'hello', 'target': target}
    backend.send('com.external/integrate-with-example', message)


@backend.receiver('com.example/integrate-with-external')
def integrate_with_external(message):
    app.logger.info('Received message from external system %r', message)


manager.add_command('backend', BackendCommand)
manager.add_command('runserver', Server(host='0.0.0.0', port=8000))


if __name__ == '__main__':
    manager.run()
