"""A queue in front of the backends: who goes next, and who is told to come back later.

    fleet = Fleet(lambda group: ready_backends(group))             # whose `room`s know what is open there
    admissions = Admissions(settings, fleet, clock)                # one queue for each group, such as a model

    ticket = admissions.of(group).offer(tenant, PriorityClass.of(name), tokens, deadline_s)  # may refuse
    try:
        await ticket.wait()                                        # at once where there is room
        backend = pick(...)                                        # those with `fleet.free(backend)` first
        sent = backend.room.sent(tokens)                           # with each lease of a backend
        ...                                                        # sent.answered() at the first byte
        sent.left()                                                # with the lease's end
    finally:
        ticket.release(used_tokens)                                # also right where `wait` was cancelled

One ticket covers all attempts of a request. `admissions.pump()` belongs after each load report and each
change of a backend's state; what happens to tickets and rooms is followed by itself.
"""

from rhizome_routing.admission.counts import AdmissionCounts
from rhizome_routing.admission.errors import NotAdmitted, QueueTimeout, SystemOverloaded, TenantOverloaded
from rhizome_routing.admission.groups import Admissions
from rhizome_routing.admission.queue import Admission, Capacity
from rhizome_routing.admission.room import Fleet, Room, RoomRules, Sent
from rhizome_routing.admission.settings import AdmissionSettings, ClassRules, PriorityClass
from rhizome_routing.admission.ticket import Ticket

__all__ = [
    "Admission",
    "AdmissionCounts",
    "AdmissionSettings",
    "Admissions",
    "Capacity",
    "ClassRules",
    "Fleet",
    "NotAdmitted",
    "PriorityClass",
    "QueueTimeout",
    "Room",
    "RoomRules",
    "Sent",
    "SystemOverloaded",
    "TenantOverloaded",
    "Ticket",
]
