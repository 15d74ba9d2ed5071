"""The node's own HTTP endpoints: is it ready, what has it counted, what does it know, what does it do."""

from ztunnel.admin.dump import AdminProviders
from ztunnel.admin.http import HttpServer, Request, Response
from ztunnel.admin.levels import LogLevels
from ztunnel.admin.listen import ListenError, open_listeners
from ztunnel.admin.metrics import MetricsPage
from ztunnel.admin.pages import Admin, Page
from ztunnel.admin.readiness import Readiness
from ztunnel.admin.servers import serve

__all__ = [
    "Admin",
    "AdminProviders",
    "HttpServer",
    "ListenError",
    "LogLevels",
    "MetricsPage",
    "Page",
    "Readiness",
    "Request",
    "Response",
    "open_listeners",
    "serve",
]
