"""The APIs: what requests may say, and their answers, in the shapes of OpenAI's, Cohere's, Jina's and TEI's."""
