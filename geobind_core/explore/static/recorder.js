// Records what the microphone hears as a WAV file, which every reader of recordings understands.

const MOST_SECONDS = 60;

export const canRecord = Boolean(navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode);

export class Recorder {
  // told: {onSeconds(seconds), onEnd(File)}
  constructor(told) {
    this.told = told;
    this.parts = [];
    this.length = 0;
  }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false }, // made for voices
    });
    this.context = new AudioContext();
    await this.context.audioWorklet.addModule("static/worklet.js");
    const node = new AudioWorkletNode(this.context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    node.port.onmessage = ({ data }) => {
      this.parts.push(data);
      this.length += data.length;
      const seconds = this.length / this.context.sampleRate;
      this.told.onSeconds(seconds);
      if (seconds >= MOST_SECONDS) this.stop();
    };
    this.context.createMediaStreamSource(this.stream).connect(node);
    await this.context.resume();
  }

  stop() {
    if (this.stopped) return;
    this.stopped = true;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    const rate = this.context?.sampleRate ?? 0;
    this.context?.close();
    this.told.onEnd(this.length ? new File([wav(this.parts, this.length, rate)], "recording.wav", { type: "audio/wav" }) : null);
  }
}

// 16 bits, one channel.
function wav(parts, length, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * length));
  const letters = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  letters(0, "RIFF");
  view.setUint32(4, 36 + 2 * length, true);
  letters(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  letters(36, "data");
  view.setUint32(40, 2 * length, true);
  let at = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 0x7fff, true);
      at += 2;
    }
  }
  return view.buffer;
}
