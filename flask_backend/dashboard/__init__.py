"""The dashboard: what the commands show and do, as web pages, on the same functions of ``operations``.

.. code-block:: python

    from flask_backend.dashboard import Dashboard

    app.register_blueprint(Dashboard(authorize=may), url_prefix="/backend")

How it is written, for those who add a page:

- A module of ``pages/`` has a :class:`~.routing.Pages`, which its decorators fill; ``pages/__init__.py`` lists the
  modules, in the order of the navigation. The name of a view is its endpoint: ``url_for(".queue", queue=name)``. A
  queue is named in the query, since a valid name may contain ``//`` or be ``..``.
- ``@pages.page("/queue", "/queue.json")``: the view takes a :class:`~.visit.Visit` and returns a
  :class:`~.routing.Page`: a template of ``templates/flask_backend/`` with its values, and the same facts as ``data``,
  which the URL that ends in ``.json`` answers. The right *view* is checked before, and a HEAD does not call the view. A
  GET sends nothing to the broker that changes anything.
- ``@pages.act("/queue/pause", "pause")``: the view of a POST. Before it the request must come from a page of the
  dashboard (:mod:`.origin`), and the right that is named is asked with the ``queue``, the ``ids`` and the ``pid`` of
  the form. It returns a :class:`~.routing.Done`, which is recorded, and shown on the page that it names; a
  :class:`~.visit.RefusalError` or an error is recorded as a failure. ``ask=`` adds the page of a question at the same
  URL, by GET: its template is ``question.html``, so an act needs no script. An act on very many jobs takes steps: each
  POST answers with ``progress.html``, whose button with ``data-continue`` the script presses.
- A view raises :class:`~.visit.RefusalError` for a page with a status, a title and one sentence. The errors of the
  broker need no handling: :mod:`.blueprint` shows them, with status 503.
- The templates are rendered in an environment of their own (:mod:`.rendering`), with autoescape, also if the app has
  switched it off. A page extends ``flask_backend/layout.html``, which an app may replace by its own one that extends
  ``flask_backend/base.html``, and fills ``title`` and ``main``. ``ui.html`` has the macros: ``ui.form`` for each POST,
  ``ui.time``, ``ui.empty``. ``may("pause", queue=name)`` is whether to render a control. Text of others goes through
  the filter ``shown``, or ``shown_lines``: control and bidi characters become visible, and it is cut.
- A region with ``data-live`` and an id of its own is replaced by the script when the page is fetched again. No
  attribute ``style`` and no script in a page: the Content-Security-Policy forbids both.
"""

from .blueprint import Dashboard

__all__ = ["Dashboard"]
