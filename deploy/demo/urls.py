"""The demo's URLs."""

from __future__ import annotations

from django.urls import path

from deploy.demo import views

app_name = "demo"
urlpatterns = [
    path("", views.board, name="board"),
    path("orders/", views.orders, name="orders"),
    path("worker/", views.worker, name="worker"),
    path("status/", views.status, name="status"),
]
