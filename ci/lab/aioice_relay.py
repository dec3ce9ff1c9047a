"""Two ICE agents of aioice that may use nothing but relays send each other datagrams.

Arguments: HOST PORT udp|tcp tls|plain USER. The password is in TURN_PASSWORD. Prints the pair of
candidates and how many datagrams came each way.
"""

import asyncio
import os
import sys

import aioice

DATAGRAMS = 50


async def exchange(sender, receiver):
    arrived = 0
    for number in range(DATAGRAMS):
        sent = b"%05d" % number + bytes(1000)
        await sender.send(sent)
        received = await asyncio.wait_for(receiver.recv(), 5)
        arrived += received == sent
    return arrived


async def main():
    host, port, transport, security, user = sys.argv[1:]
    agents = []
    for controlling in (True, False):
        agents.append(
            aioice.Connection(
                ice_controlling=controlling,
                turn_server=(host, int(port)),
                turn_username=user,
                turn_password=os.environ["TURN_PASSWORD"],
                turn_transport=transport,
                turn_ssl=security == "tls",
                use_ipv6=False,
                transport_policy=aioice.ice.TransportPolicy.RELAY,
            )
        )
    first, second = agents
    for agent in agents:
        await agent.gather_candidates()
    for agent, other in ((first, second), (second, first)):
        for candidate in other.local_candidates:
            print("candidate", candidate.host, candidate.port, candidate.type)
            await agent.add_remote_candidate(candidate)
        await agent.add_remote_candidate(None)
        agent.remote_username = other.local_username
        agent.remote_password = other.local_password
    await asyncio.wait_for(asyncio.gather(first.connect(), second.connect()), 20)
    print("arrived", await exchange(first, second), await exchange(second, first))
    for agent in agents:
        await agent.close()


asyncio.run(asyncio.wait_for(main(), 60))
