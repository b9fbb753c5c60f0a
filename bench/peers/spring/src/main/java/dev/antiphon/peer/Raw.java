package dev.antiphon.peer;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;

import io.grpc.KnownLength;
import io.grpc.MethodDescriptor;

/** Leaves messages as they are. */
final class Raw implements MethodDescriptor.Marshaller<byte[]> {
	@Override
	public InputStream stream(byte[] message) {
		return new Known(message);
	}

	@Override
	public byte[] parse(InputStream stream) {
		try {
			return stream.readAllBytes();
		}
		catch (IOException error) {
			throw new UncheckedIOException(error);
		}
	}

	private static final class Known extends ByteArrayInputStream implements KnownLength {
		Known(byte[] message) {
			super(message);
		}
	}
}
