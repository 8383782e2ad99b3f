"""The direct hold: streams that this process keeps open itself.

One hub for each event loop. It keeps a short tail of each channel that somebody reads, fed
by the bus and, in case that is silent, by a look at the log every few seconds. A
subscriber is little more than a position: whenever it can write it takes everything above
it, from the tail or, if that no longer reaches back so far, from the log. So a slow client
costs no memory, nothing is ever dropped for it, and no client has a database connection:
the log is read by a few threads.

Order of joining a channel: subscribe to the bus and see that confirmed, read the log, then
go live. What comes over the bus is taken only if it follows what the tail ends with; any gap
is filled from the log, and with it come the kicks that this process has not heard of. The
first event after a kick names the kicked. So none that follows a kick is ever sent to them.

    tails, subscribers    a channel in memory, and one stream's position in its channels
    pool, log             the threads that read the database, and what they read
    buslink               the connection to the bus
    channels              joining a channel, and keeping it up to date
    permissions           withdrawn ones, and those asked again
    beginnings, streams   initial states, and how one stream goes
    switchboard           the hub, of all these
    writing               a stream in an ASGI server's task
"""

from eventstream.hub.switchboard import Hub, get_hub

__all__ = ["Hub", "get_hub"]
