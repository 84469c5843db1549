"""A Django site with rooms: python django_site.py runserver, or gunicorn django_site:site."""

from __future__ import annotations

import sys

import common
import django
from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

if not settings.configured:
    settings.configure(
        ROOT_URLCONF="django_site",
        WSGI_APPLICATION="django_site.site",
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="tests",
        DEBUG=False,
        MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
        USE_TZ=True,
    )
    django.setup()


def hello(request: HttpRequest) -> HttpResponse:
    """A page of the site's own."""
    return HttpResponse("hello")


def insight(request: HttpRequest) -> HttpResponse:
    """What a test wants to know."""
    return JsonResponse(common.insight())


def live(request: HttpRequest) -> HttpResponse:
    """A WebSocket behind a view, which knows who it is."""
    player_id = request.headers.get("X-View")
    return site.django(request, player_id) if player_id else HttpResponse("who are you?", status=401)


urlpatterns = [path("hello", hello), path("insight", insight), path("live", live)]
site = common.rooms_app(get_wsgi_application())

if __name__ == "__main__":
    sys.modules["django_site"] = sys.modules["__main__"]
    common.end_on_sigterm()
    execute_from_command_line(["django_site", "runserver", "--noreload", "127.0.0.1:0"])
