// One connection between two browsers, and the negotiation that both may begin at any time.

/**
 * Perfect negotiation: when both have made an offer at once, the polite one drops its own and takes the other's, the
 * impolite one does not listen. Exactly one of the two must be polite. The very first offer is left to the impolite one:
 * two first ones at once, each with the data channel, go on for ever in Chromium.
 *
 * `send` gets the descriptions and candidates to bring to the other browser; hand what comes from there to receive().
 * Callbacks: onStream(stream), onData(object), onState(RTCPeerConnectionState), onTrouble(error).
 */
export class Peer {
  constructor({ polite, iceServers, stream, send, onStream, onData, onState, onTrouble }) {
    this.polite = polite;
    this.send = send;
    this.onTrouble = onTrouble;
    this.makingOffer = false;
    this.settingAnswer = false;
    this.ignoringOffer = false;
    this.connection = new RTCPeerConnection({ iceServers });
    const { connection } = this;
    connection.onnegotiationneeded = () => (connection.remoteDescription || !polite) && this.offer();
    connection.onicecandidate = ({ candidate }) => candidate && send({ candidate: candidate.toJSON() });
    connection.ontrack = ({ streams }) => onStream(streams[0]);
    connection.onconnectionstatechange = () => {
      if (connection.connectionState === 'failed') connection.restartIce(); // makes a negotiation needed
      onState(connection.connectionState);
    };
    // Negotiated: both make the same one, so that there is a connection also where nobody has a camera.
    this.channel = connection.createDataChannel('status', { negotiated: true, id: 0 });
    this.channel.onopen = () => this.tell();
    this.channel.onmessage = ({ data }) => onData(JSON.parse(data));
    for (const track of stream?.getTracks() ?? []) connection.addTrack(track, stream);
  }

  async offer() {
    try {
      this.makingOffer = true;
      await this.connection.setLocalDescription();
      this.send({ description: this.connection.localDescription.toJSON() });
    } catch (error) {
      this.onTrouble(error);
    } finally {
      this.makingOffer = false;
    }
  }

  async receive({ description, candidate }) {
    const { connection } = this;
    try {
      if (description) {
        const free = !this.makingOffer && (connection.signalingState === 'stable' || this.settingAnswer);
        this.ignoringOffer = description.type === 'offer' && !free && !this.polite;
        if (this.ignoringOffer) return;
        this.settingAnswer = description.type === 'answer';
        await connection.setRemoteDescription(description); // takes back an own offer that is under way
        this.settingAnswer = false;
        if (description.type !== 'offer') return;
        await connection.setLocalDescription();
        this.send({ description: connection.localDescription.toJSON() });
      } else if (candidate) {
        await connection.addIceCandidate(candidate);
      }
    } catch (error) {
      this.settingAnswer = false;
      if (!this.ignoringOffer && connection.signalingState !== 'closed') this.onTrouble(error);
    }
  }

  /** Tells the other browser, directly, whether I can be seen and heard: now, and once the channel is open. */
  tell(status = this.status) {
    this.status = status;
    if (status && this.channel.readyState === 'open') this.channel.send(JSON.stringify(status));
  }

  close() {
    this.connection.close();
  }
}
