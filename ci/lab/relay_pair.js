// Two peer connections of one page that may use nothing but relays exchange messages over an
// unreliable data channel, one at a time, so that each of them crosses both relays.
async function exchange(server) {
  const report = { candidates: [], errors: [], arrived: 0 };
  const peers = [0, 1].map(() => new RTCPeerConnection({
    iceServers: [server], iceTransportPolicy: "relay",
  }));
  try {
    peers.forEach((peer, index) => {
      peer.onicecandidate = ({ candidate }) => {
        if (!candidate) return;
        report.candidates.push(candidate.candidate);
        peers[1 - index].addIceCandidate(candidate);
      };
      peer.onicecandidateerror = (event) => report.errors.push(event.errorCode + " " + event.errorText);
    });
    const channel = peers[0].createDataChannel("x", { ordered: false, maxRetransmits: 3 });
    peers[1].ondatachannel = ({ channel }) => { channel.onmessage = ({ data }) => channel.send(data); };
    await peers[0].setLocalDescription();
    await peers[1].setRemoteDescription(peers[0].localDescription);
    await peers[1].setLocalDescription();
    await peers[0].setRemoteDescription(peers[1].localDescription);
    await within(20000, new Promise((resolve) => { channel.onopen = resolve; }), report);
    for (let number = 0; number < 200; number++) {
      const message = String(number).padStart(1000, "0");
      const answer = new Promise((resolve) => { channel.onmessage = ({ data }) => resolve(data); });
      channel.send(message);
      if (await within(5000, answer, report) === message) report.arrived++;
    }
    return report;
  } finally {
    peers.forEach((peer) => peer.close());
  }
}

function within(milliseconds, promise, report) {
  const late = new Promise((_, reject) => setTimeout(
    () => reject(new Error("nothing came: " + JSON.stringify(report))), milliseconds));
  return Promise.race([promise, late]);
}
