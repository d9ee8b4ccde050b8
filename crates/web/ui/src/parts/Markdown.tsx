import Text from "react-markdown";
import gfm from "remark-gfm";

/** Foreign text: no HTML of its own, no image from elsewhere, links that tell nobody where they were clicked. */
export default function Markdown({ text }: { text: string }) {
  return (
    <div className="prose-text">
      <Text
        remarkPlugins={[gfm]}
        skipHtml={false}
        components={{
          a: ({ href, children }) => (
            <a href={href} rel="noreferrer noopener nofollow" target="_blank">
              {children}
            </a>
          ),
          img: ({ alt }) => <span className="text-soft">[image: {alt || "without a name"}]</span>,
        }}
      >
        {text}
      </Text>
    </div>
  );
}
