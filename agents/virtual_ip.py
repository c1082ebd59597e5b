"""ocf:mirrorha:VirtualIP, in the place of heartbeat:IPaddr2 for IPv4.

The file reads the kernel and acts; `agents.address.decide` decides. A monitor imports nothing beyond this file's head.
"""

from __future__ import annotations

import errno
import time

from agents.address.decide import Wish, choose_address, choose_link, contradiction, is_managed, judge, link_trouble
from agents.address.model import Address, Link, parse_ipv4, prefix_of_netmask, show_ipv4
from agents.address.netlink import Rtnetlink
from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import ERR_CONFIGURED, ERR_GENERIC, SUCCESS, AgentError, OcfExit
from agents.ocf.parameter import Boolean, Choice, Integer, Milliseconds, Parameter, Seconds, Text, Words

# A driver that was just switched on negotiates with its switch before it reports carrier.
NEGOTIATION_S = 5.0
POLL_S = 0.05


class Ipv4(Parameter):
    """A host's IPv4 address, as a number."""

    def convert(self, text: str) -> int:
        return parse_ipv4(text)

    def constraint(self) -> str:
        return "IPv4 address, four decimal numbers."


class PrefixLength(Parameter):
    """Prefix length 1 to 32, also written as netmask; 0 = not configured."""

    def convert(self, text: str) -> int:
        if "." in text:
            return prefix_of_netmask(parse_ipv4(text))
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 32):
            raise ValueError("must be a prefix length 1 to 32 or a netmask such as 255.255.255.0")
        return int(text)

    def absent(self) -> int:
        return 0

    def constraint(self) -> str:
        return "Number 1 to 32, or a netmask such as 255.255.255.0."


class VirtualIP(Agent):
    """Keeps one IPv4 address on the node where the resource runs.

    The address is added next to the interface's own addresses, after a check that no other host uses it, and announced
    to the neighbours at once. The monitor also watches the interface's link. Stopping never takes the interface's own
    addresses and routes along.
    """

    ip = Ipv4(
        "The virtual address",
        "IPv4 address to keep, without prefix length.",
        required=True,
        unique=True,
        unique_group="addr",
    )
    cidr_netmask = PrefixLength(
        "Prefix length", "Prefix length of the address; by default that of the connected network it lies in, else 32."
    )
    nic = Words(
        "Network interface",
        "Interface to hold the address, or several in order of preference: the first with carrier is taken. By default "
        "the interface whose connected network contains the address.",
        unique_group="addr",
    )
    iflabel = Text("Interface label", "Label for the address, shown as <nic>:<label>; at most 15 characters together.")
    broadcast = Text("Broadcast address", "Broadcast address; + or empty sets all host bits, - clears them.")
    noprefixroute = Boolean(
        "No route for the network", "Add the address without a route to its network.", default=False
    )
    garp_count = Integer(
        "Announcements after start",
        "Pairs of gratuitous ARP request and reply after a start.",
        default=5,
        minimum=0,
        maximum=100,
        reloadable=True,
    )
    garp_interval = Milliseconds(
        "Pause between announcements", default="200ms", minimum="10ms", maximum="60s", reloadable=True
    )
    garp_refresh = Integer(
        "Announcements per monitor",
        "Pairs of gratuitous ARP request and reply sent by each monitor.",
        default=0,
        minimum=0,
        maximum=10,
        reloadable=True,
    )
    garp_delay_repeat = Seconds(
        "Delay of the second burst",
        "All announcements are repeated once after this time; 0 = not repeated.",
        default="5s",
        maximum="10m",
        reloadable=True,
    )
    conflict_check = Choice(
        "Duplicate address check",
        "Ask the network by ARP, before the address is added, whether another host uses it: on = the start fails then, "
        "warn = it is only logged, off = do not ask.",
        options=("on", "warn", "off"),
        default="on",
        reloadable=True,
    )
    conflict_wait = Milliseconds(
        "Duration of the duplicate check",
        "How long to wait for the answer of another host.",
        default="600ms",
        minimum="50ms",
        maximum="10s",
        reloadable=True,
    )
    check_link = Choice(
        "Link check",
        "What start and monitor demand of the interface: carrier, administratively up, or nothing.",
        options=("carrier", "admin", "none"),
        default="carrier",
        reloadable=True,
    )
    link_grace = Seconds(
        "Tolerated loss of link",
        "How long the link may be lost before start or monitor fails.",
        default="2s",
        maximum="1m",
        reloadable=True,
    )

    # --- actions -------------------------------------------------------------------------------------------------

    @action(timeout_s=20)
    def start(self) -> OcfExit:
        """Resumable: every step looks first whether it is done already."""
        from agents.address import announce, settings

        wish = self._wish()
        with Rtnetlink() as kernel:
            self._repair(kernel)
            self._end_former(kernel, wish)
            link = self._link_to_use(kernel, wish)
            claim = self.record("claim")
            former_nic = claim.read().get("nic", link.name)
            settings.claim(self.state_directory, claim, link, show_ipv4(wish.ip), self._lock_patience_s, self.log)
            link = self._bring_up(kernel, link)
            wanted = choose_address(wish, link, kernel.addresses(), kernel.routes(link.index))
            fresh = not self._held_here(kernel, wish)
            if fresh:
                self._check_conflict(kernel, link, wish.ip)
            self._add(kernel, wanted)
            if self.garp_count:
                announce.announce_once(link, wish.ip)
            self._remove(kernel, wish, but=wanted)
            if former_nic != link.name:
                settings.leave(self.state_directory, claim, former_nic, self._lock_patience_s, self.log)
            if fresh:
                self._announce_more(link, wish.ip)
            self._remember(link)
        return SUCCESS

    @action(timeout_s=20)
    def stop(self) -> OcfExit:
        """Ends the helper first: nothing may announce an address that is about to leave."""
        wish = self._wish()
        helper, claim = self.record("helper"), self.record("claim")
        if helper.read():
            from agents.address.announce import end_helper

            end_helper(helper)
        with Rtnetlink() as kernel:
            self._repair(kernel)
            self._end_former(kernel, wish)
            # an interface may have been renamed since the start: its index stays
            index = self._claimed_index()
            self._remove(kernel, wish, also_on=index)
            self._demand_absence(kernel, wish, index)
        if claim.read():
            from agents.address.settings import release

            release(self.state_directory, claim, self._lock_patience_s, self.log)
            self.record("link").remove()
        return SUCCESS

    @action(timeout_s=20, interval_s=10)
    def monitor(self) -> OcfExit:
        wish = self._wish()
        with Rtnetlink() as kernel:
            copies = self._copies(kernel, wish.ip)
            links = {link.index: link for copy in copies if (link := kernel.link(copy.index)) is not None}
            code, reason = judge(wish, copies, links)
            if code != SUCCESS:
                if reason:
                    raise AgentError(code, reason)
                return code
            link = next(link for link in links.values() if not link.is_loopback)
            link = self._demand_link(kernel, link, self.link_grace)
        if not self.is_probe:
            self._refresh(link, wish.ip)
        return SUCCESS

    @action(timeout_s=20)
    def reload_agent(self) -> OcfExit:
        """Every reloadable parameter is read anew by each action, so checking the new values is all there is to do."""
        return SUCCESS

    # --- checks --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        wish = self._wish()
        trouble = contradiction(wish)
        if trouble:
            raise AgentError(ERR_CONFIGURED, trouble)
        if self.broadcast not in ("", "+", "-"):
            try:
                parse_ipv4(self.broadcast)
            except ValueError as error:
                raise AgentError(ERR_CONFIGURED, f"parameter broadcast {error}, or + or -") from None

    def check_node(self) -> None:
        wish = self._wish()
        with Rtnetlink() as kernel:
            link = self._link_to_use(kernel, wish)
            choose_address(wish, link, kernel.addresses(), kernel.routes(link.index))

    def _wish(self) -> Wish:
        return Wish(
            self.ip,
            prefix_len=self.cidr_netmask,
            nics=self.nic,
            label=self.iflabel,
            broadcast=self.broadcast,
            noprefixroute=self.noprefixroute,
        )

    # --- steps ---------------------------------------------------------------------------------------------------

    def _copies(self, kernel: Rtnetlink, ip: int) -> list[Address]:
        return [address for address in kernel.addresses() if address.local == ip]

    def _held_here(self, kernel: Rtnetlink, wish: Wish) -> bool:
        """Is the address on an interface that we manage? Raises AgentError (1) when it is on one that we do not."""
        held = False
        for copy in self._copies(kernel, wish.ip):
            link = kernel.link(copy.index)
            if is_managed(wish, link):
                held = True
            elif link is not None and not link.is_loopback:
                fact = f"{show_ipv4(wish.ip)} is on {link.name}, which this resource does not manage"
                raise AgentError(ERR_GENERIC, f"{fact}; ip address del it there, or correct nic")
        return held

    def _demand_absence(self, kernel: Rtnetlink, wish: Wish, index: int) -> None:
        """Raises AgentError (1) if the address is still where we manage it. Elsewhere it is not ours to remove, and
        the conflict check of the next start, on whichever node, will find it."""
        for copy in self._copies(kernel, wish.ip):
            link = kernel.link(copy.index)
            if is_managed(wish, link) or copy.index == index:
                raise AgentError(ERR_GENERIC, f"{show_ipv4(wish.ip)} came back while it was removed; who else adds it?")
            if link is not None and not link.is_loopback:
                self.log.warning(f"{show_ipv4(wish.ip)} stays on {link.name}, which this resource does not manage")

    def _repair(self, kernel: Rtnetlink) -> None:
        """Finish what a stop that was killed left undone."""
        left = self.record("keepsakes")
        if left.read():
            from agents.address.removal import repair
            from agents.address.settings import Claims

            repair(kernel, left, set(Claims(self.state_directory, self.record("claim")).of_others()), self.log)

    @property
    def _lock_patience_s(self) -> float:
        from agents.address.settings import PATIENCE_S

        return min(PATIENCE_S, self.time_left_s / 8)

    def _claimed_index(self) -> int:
        index = self.record("claim").read().get("index", "")
        return int(index) if index.isascii() and index.isdigit() else 0

    def _end_former(self, kernel: Rtnetlink, wish: Wish) -> None:
        """Remove the address of an earlier start of this resource, if it was configured anew and no stop came between
        that knew the old value (a manager that was restarted forgets it)."""
        claim = self.record("claim").read()
        former = claim.get("ip", "")
        if former in ("", show_ipv4(wish.ip)):
            return
        from agents.address.settings import Claims

        if former not in Claims(self.state_directory, self.record("claim")).of_others():
            there = Wish(parse_ipv4(former), nics=(claim.get("nic", ""),))
            self._remove(kernel, there, also_on=self._claimed_index())

    def _link_to_use(self, kernel: Rtnetlink, wish: Wish) -> Link:
        """Where the address is already, if that interface is fit; else what the configuration prefers."""
        for copy in self._copies(kernel, wish.ip):
            link = kernel.link(copy.index)
            if link is not None and is_managed(wish, link) and not link_trouble(link, self.check_link):
                return link
        routes = [] if wish.nics else kernel.routes()
        return choose_link(wish, kernel.addresses(), kernel.links(), routes)

    def _bring_up(self, kernel: Rtnetlink, link: Link) -> Link:
        """Administratively up, and with carrier if that is demanded. Raises AgentError (1)."""
        patience = self.link_grace
        if not link.is_up:
            self.doing = f"switching {link.name} on"
            kernel.set_up(link.index)
            patience = max(patience, NEGOTIATION_S)
        return self._demand_link(kernel, link, patience)

    def _demand_link(self, kernel: Rtnetlink, link: Link, patience_s: float) -> Link:
        """The link as it is now; waits `patience_s` for one that check_link accepts. Raises AgentError (1)."""
        end = time.monotonic() + min(patience_s, self.time_left_s / 2)
        self.doing = f"waiting for the link of {link.name}"
        while True:
            now = kernel.link(link.index)
            if now is None:
                raise AgentError(ERR_GENERIC, f"network interface {link.name} vanished")
            trouble = link_trouble(now, self.check_link)
            if not trouble:
                return now
            if time.monotonic() >= end:
                raise AgentError(ERR_GENERIC, f"{show_ipv4(self.ip)}: {trouble}")
            time.sleep(POLL_S)

    def _check_conflict(self, kernel: Rtnetlink, link: Link, ip: int) -> None:
        """Raises AgentError (1) when another host uses the address and conflict_check is on."""
        if self.conflict_check == "off" or not link.speaks_arp:
            return
        from agents.address.conflict import find_claimant

        self.doing = f"asking on {link.name} who has {show_ipv4(ip)}"
        own = frozenset(one.mac for one in kernel.links())
        mac = find_claimant(link, ip, own, self.conflict_wait)
        if mac is None:
            return
        fact = f"{show_ipv4(ip)} is in use by {mac.hex(':')}, seen on {link.name}"
        if self.conflict_check == "on":
            raise AgentError(ERR_GENERIC, f"{fact}; free it there, or set conflict_check=warn")
        self.log.warning(f"{fact}; taken over (conflict_check=warn)")

    def _add(self, kernel: Rtnetlink, wanted: Address) -> None:
        self.doing = f"adding {wanted}"
        try:
            kernel.add_address(wanted)
        except OSError as error:
            if error.errno != errno.EEXIST:
                fact = f"{show_ipv4(wanted.local)}/{wanted.prefix_len} not added to {wanted.label}"
                raise AgentError(ERR_GENERIC, f"{fact}: {error.strerror}") from error

    def _remove(self, kernel: Rtnetlink, wish: Wish, *, but: Address | None = None, also_on: int = 0) -> None:
        """Delete the address from every interface that is ours to manage, except one copy."""
        copies = [copy for copy in self._copies(kernel, wish.ip) if but is None or copy.key != but.key]
        for index in {copy.index for copy in copies}:
            link = kernel.link(index)
            if link is None or not (is_managed(wish, link) or index == also_on):
                continue
            from agents.address.removal import remove
            from agents.address.settings import Claims, InterfaceLock

            self.doing = f"removing {show_ipv4(wish.ip)} from {link.name}"
            with InterfaceLock(self.state_directory, link.name, self._lock_patience_s, self.log):
                here = [copy for copy in copies if copy.index == index]
                claimed = set(Claims(self.state_directory, self.record("claim")).of_others())
                remove(kernel, link, here, self.record("keepsakes"), claimed, self.log)

    def _refresh(self, link: Link, ip: int) -> None:
        """Announce again if configured, or once after the link was lost: arp_notify covers MAC changes only, and a
        switch that was rebooted has forgotten where we are."""
        known = self.record("link").read().get("life", link.life)
        count = max(self.garp_refresh, 1 if known != link.life else 0)
        if count == 0:
            return
        from agents.address.announce import announce_once

        for _ in range(count):
            announce_once(link, ip)
        if known != link.life:
            self.log.info(f"{link.name} lost its link since the last monitor; {show_ipv4(ip)} announced again")
            self._remember(link)

    def _remember(self, link: Link) -> None:
        from agents.address.announce import remember_link

        try:
            remember_link(self.record("link"), link)
        except OSError as error:
            self.log.warning(f"no record of the link in {self.state_directory}: {error.strerror}")

    def _announce_more(self, link: Link, ip: int) -> None:
        from agents.address.announce import end_helper, leave_helper, pauses

        record = self.record("helper")
        end_helper(record)
        waits = pauses(self.garp_count, self.garp_interval, self.garp_delay_repeat)
        try:
            leave_helper(record, link, ip, waits)
        except OSError as error:
            self.log.warning(f"{record.path} not written: {error.strerror}")
